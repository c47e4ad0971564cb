//! `liquidctl introduce`: tells another cluster whom it may call.

use crate::cluster::{ClusterArgs, require_info};
use crate::failure::Failure;
use crate::output::{print, tell};
use clap::Args;
use liquid_link::introduction::Introduction;

/// Arguments of `liquidctl introduce`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) async fn run(cluster: &ClusterArgs, _: Arguments) -> Result<(), Failure> {
    let client = cluster.connect().await?;
    let info = require_info(&client, &cluster.namespace).await?;
    let gateways = info.require_gateways()?.to_vec();
    let reachable = info.can_be_called();
    let introduction = Introduction { cluster_name: info.name, cluster_id: info.id, gateways };
    print(&format!("{introduction}\n"))?;
    let name = &introduction.cluster_name;
    tell(&format!(
        "this is not secret; with `liquidctl invite --in-band --introduction FILE` the administrator of a provider makes a \
         token for {name} of it"
    ));
    if !reachable {
        tell(&format!(
            "no gateway of {name} has an address outside the cluster: those of the provider need one"
        ));
    }
    Ok(())
}
