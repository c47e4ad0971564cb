//! The end of peerings and installations: nothing is left.

use crate::manifests::{FOREVER, deployment, offloaded};
use anyhow::Context as _;
use liquid_scenarios::{Environment, Snapshot};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// Would catch: anything a peering leaves behind in either cluster, and state of an earlier peering that disturbs a later
/// one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn five_peerings_leave_nothing_behind() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.delete_namespace("again").await?;
    provider.drop_tokens().await?;
    let before = [Snapshot::take(&home.client).await?, Snapshot::take(&provider.client).await?];
    for round in 1..=5 {
        let started = Instant::now();
        let told = environment.peer().await?;
        println!(
            "round {round}: {} ({:.2} s with the command)",
            told.trim(),
            started.elapsed().as_secs_f64()
        );
        offloaded(home, "again").await?;
        home.apply("again", &deployment("web", 2, FOREVER)).await?;
        home.wait_for_pods("again", "app=web", 2, SOON).await?;
        // Not even unoffloaded first: the pods are still there when the peering ends.
        home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
        home.delete_namespace("again").await?;
        provider.drop_tokens().await?;
    }
    for (before, cluster) in before.iter().zip([home, provider]) {
        before.is_restored(&cluster.client).await.with_context(|| format!("cluster {}", cluster.name))?;
    }
    Ok(())
}

/// Would catch: a provider's administrator who cannot end a peering, and a consumer that is not told.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn the_provider_can_end_the_peering() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "ended").await?;
    home.apply("ended", &deployment("web", 1, FOREVER)).await?;
    home.wait_for_pods("ended", "app=web", 1, SOON).await?;

    provider.liquidctl.run(["unpeer", "home"]).await?.ok()?;

    assert!(provider.pods("ended-home", "").await?.is_empty());
    home.wait("the virtual node goes", SOON, || async {
        let nodes = home
            .kubectl
            .run(["get", "nodes", "-l", "liquid.mesh/type=virtual-node", "-o", "name"])
            .await?
            .ok()?;
        use liquid_scenarios::Look;
        Ok(if nodes.trim().is_empty() { Look::Done(()) } else { Look::NotYet(nodes) })
    })
    .await?;
    let status = home.liquidctl.run(["status"]).await?.ok()?;
    assert!(status.contains("ended the peering"), "{status}");
    home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
    home.delete_namespace("ended").await
}

/// Would catch: anything an installation leaves behind, and an uninstallation that cuts off peers or pods without a word.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn uninstall_leaves_nothing_behind() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    home.settled().await?;
    let refused = home.liquidctl.run(["uninstall"]).await?;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("peerings (provider)"), "{}", refused.err);

    for cluster in [home, provider] {
        cluster.liquidctl.run(["uninstall", "--unpeer"]).await?.ok()?;
    }
    for cluster in [home, provider] {
        cluster.settled().await?;
    }
    let bare = [Snapshot::take(&home.client).await?, Snapshot::take(&provider.client).await?];
    for cluster in [home, provider] {
        environment.install(cluster).await?;
    }
    environment.peer().await?;
    for cluster in [home, provider] {
        cluster.liquidctl.run(["uninstall", "--unpeer"]).await?.ok()?;
    }
    for (before, cluster) in bare.iter().zip([home, provider]) {
        before.is_restored(&cluster.client).await.with_context(|| format!("cluster {}", cluster.name))?;
        let left = format!("{before:?}");
        assert!(!left.contains("liquid"), "something of Liquid is left: {left}");
    }
    Ok(())
}
