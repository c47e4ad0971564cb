//! Services and pods of offloaded namespaces over every kind of peering: {equal, asymmetric, disjoint} prefixes, {IPv4, IPv6},
//! {TCP, UDP}, from both sides. Cluster `a` of the lab borrows from the others, each of which stands in another relation to it
//! (see [`Relation`]), over the families that both have.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

mod cells;
mod peering;
mod stage;

use crate::peering::Peering;
use crate::stage::Stage;
use futures::future::try_join_all;
use liquid_lab::{CidrPlan, ClusterSpec, Lab};
use std::collections::BTreeSet;
use std::time::Instant;

/// How a provider relates to home.
struct Relation {
    /// Cluster of the lab.
    cluster: String,
    /// What it is called in Liquid: how its prefixes relate to those of home.
    name: &'static str,
    /// Whether they have to be seen under others at home, and those of home there.
    moved: bool,
    /// The families both have: whether it is IPv4, that first.
    families: Vec<bool>,
}

impl Relation {
    /// Those of the lab's clusters to the first of them. Asymmetric is one whose pods are where home has Services, and the other
    /// way round: the third cluster.
    fn all(lab: &Lab) -> anyhow::Result<Vec<Self>> {
        let spec = lab.spec();
        let families = |cluster: &str| -> anyhow::Result<Vec<bool>> {
            Ok(lab.cluster(cluster)?.addresses().pods.iter().map(|pods| pods.addr().is_ipv4()).collect())
        };
        let [home, providers @ ..] = &spec.clusters[..] else { anyhow::bail!("the lab has no clusters") };
        let at_home = families(home.name.as_str())?;
        let relation = |provider: &ClusterSpec| {
            let cluster = provider.name.to_string();
            let there = families(&cluster)?;
            let (name, moved) = match spec.cidrs_of(provider) {
                CidrPlan::Same => ("equal", true),
                CidrPlan::Asymmetric => ("asymmetric", true),
                CidrPlan::Disjoint => ("disjoint", false),
            };
            let families: Vec<bool> = at_home.iter().copied().filter(|it| there.contains(it)).collect();
            anyhow::ensure!(!families.is_empty(), "home and cluster {cluster} have no family in common");
            println!("cluster {cluster}: {name}, {} families", families.len());
            Ok(Self { cluster, name, moved, families })
        };
        let relations = providers.iter().map(relation).collect::<anyhow::Result<Vec<_>>>()?;
        let names: BTreeSet<_> = relations.iter().map(|relation| relation.name).collect();
        anyhow::ensure!(!names.is_empty() && names.len() == relations.len(), "the lab has {names:?} alone");
        Ok(relations)
    }
}

/// Would catch: a family, protocol or direction that works without the other; pods on virtual nodes with an address of one
/// family only; Services, endpoints or names in the provider that lack a family; node ports and load balancers that do not
/// lead to pods of the other cluster; sources that are not what the other side's endpoints say; a peering that only works
/// while there is no other; and prefixes that are moved without need, or not moved when they must be.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a lab whose clusters differ in their prefixes"]
async fn every_kind_of_service_answers_over_every_kind_of_peering() -> anyhow::Result<()> {
    let begun = Instant::now();
    let stage = Stage::open().await?;
    stage.installed().await?;
    println!("installed after {:.0} s", begun.elapsed().as_secs_f64());
    try_join_all(stage.relations.iter().map(|relation| stage.peered(relation.name))).await?;
    println!("peered after {:.0} s", begun.elapsed().as_secs_f64());
    let mut peerings = Vec::new();
    for (number, relation) in (0..).zip(&stage.relations) {
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
