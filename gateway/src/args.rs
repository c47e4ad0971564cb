//! Command line of `liquid-gateway`.

use clap::Parser;
use liquid_runtime::admin::AdminArgs;
use std::path::PathBuf;

/// Liquid's gateway: WireGuard to all peers, with their prefixes remapped where they overlap
#[derive(Debug, Parser)]
#[command(name = "liquid-gateway", version)]
pub(crate) struct Args {
    /// Configuration file (YAML); SIGHUP reads it again
    #[arg(long, env = "LIQUID_GATEWAY_CONFIG")]
    pub(crate) config: PathBuf,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        super::Args::command().debug_assert();
    }
}
