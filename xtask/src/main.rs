//! The one entry point for people who build, try and test Liquid.

fn main() -> anyhow::Result<()> {
    Ok(())
}
