//! Services and pods of offloaded namespaces over every kind of peering: {equal, asymmetric, disjoint} prefixes, {IPv4, IPv6},
//! {TCP, UDP}, from both sides. One lab of four dual-stack clusters has all of it at once: `a` borrows from the others, each
//! of which stands in another relation to it (see [`RELATIONS`]).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

mod cells;
mod peering;
mod stage;

use crate::peering::Peering;
use crate::stage::Stage;
use futures::future::try_join_all;
use std::time::Instant;

/// How the prefixes of a provider relate to those of home.
struct Relation {
    /// Cluster of the lab.
    cluster: &'static str,
    /// What it is called in Liquid.
    name: &'static str,
    /// Whether its prefixes have to be seen under others at home, and those of home there.
    moved: bool,
}

/// As the lab is started for this: `--clusters a,b,c,d --pod-cidr same,c=asymmetric,d=disjoint --ip-families dual`.
const RELATIONS: [Relation; 3] = [
    Relation { cluster: "b", name: "equal", moved: true },
    // Its pods are where home has Services, and the other way round.
    Relation { cluster: "c", name: "asymmetric", moved: true },
    Relation { cluster: "d", name: "disjoint", moved: false },
];

/// Would catch: a family, protocol or direction that works without the other; pods on virtual nodes with an address of one
/// family only; Services, endpoints or names in the provider that lack a family; node ports and load balancers that do not
/// lead to pods of the other cluster; sources that are not what the other side's endpoints say; a peering that only works
/// while there is no other; and prefixes that are moved without need, or not moved when they must be.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab of four dual-stack clusters"]
async fn every_kind_of_service_answers_over_every_kind_of_peering() -> anyhow::Result<()> {
    let begun = Instant::now();
    let stage = Stage::open().await?;
    stage.installed().await?;
    println!("installed after {:.0} s", begun.elapsed().as_secs_f64());
    try_join_all(RELATIONS.iter().map(|relation| stage.peered(relation.name))).await?;
    println!("peered after {:.0} s", begun.elapsed().as_secs_f64());
    let mut peerings = Vec::new();
    for (number, relation) in (0..).zip(&RELATIONS) {
        peerings.push(Peering::new(&stage, relation, number)?);
    }
    try_join_all(peerings.iter().map(Peering::sees_prefixes_as_it_must)).await?;
    try_join_all(peerings.iter().map(Peering::furnish)).await?;
    println!("pods and Services there after {:.0} s", begun.elapsed().as_secs_f64());
    let mut asked = 0;
    let mut failures = Vec::new();
    for found in try_join_all(peerings.iter().map(Peering::ask)).await? {
        asked += found.asked;
        failures.extend(found.failures);
    }
    println!("{asked} cells asked after {:.0} s", begun.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{} of {asked} cells failed:\n{}", failures.len(), failures.join("\n"));
    for peering in &peerings {
        peering.clear_away().await?;
    }
    Ok(())
}
