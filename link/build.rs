//! Compiles the protocol of the peer link.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/link.proto");
    let descriptors = protox::compile(["link.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".liquid.link.v1").compile_fds(descriptors)?;
    Ok(())
}
