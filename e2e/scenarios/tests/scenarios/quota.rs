//! What a consumer may have of a provider.

use crate::manifests::{FOREVER, bound, drop_namespace, offloaded};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::ListParams;
use liquid_crds::ShadowPod;
use liquid_scenarios::{Cluster, Environment, Look};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// A pod that waits for room is not left to its next try, which may be a minute away.
const AT_ONCE: Duration = Duration::from_secs(15);
const NODE: &str = "liquid-provider";
/// Ends when it is told to.
const UNTIL_TOLD: &str = "while [ ! -e /tmp/done ]; do sleep 0.1; done";

async fn limit(provider: &Cluster, limits: Value) -> anyhow::Result<()> {
    provider.change_peer("home", json!({ "lend": { "limits": limits } })).await
}

async fn status(home: &Cluster, name: &str) -> anyhow::Result<PodStatus> {
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "quota");
    pods.get(name).await?.status.context("no status")
}

async fn wait_for(home: &Cluster, name: &str, wanted: &str, limit: Duration) -> anyhow::Result<PodStatus> {
    home.wait(&format!("{name} {wanted}"), limit, || async {
        let status = status(home, name).await?;
        let so = [&status.phase, &status.reason].into_iter().flatten().any(|is| is == wanted);
        Ok(if so {
            Look::Done(status)
        } else {
            Look::NotYet(format!("{:?} {:?}", status.phase, status.message))
        })
    })
    .await
}

/// Would catch: limits that only bound the offer, two pods that both take the last room, a refusal without numbers, pods
/// that have ended and still count, pods that wait although there is room, a restart that lets more in or throws out
/// what runs, and limits that evict.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_consumer_gets_what_it_is_lent_and_no_more() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    // What earlier scenarios have left to end counts, too.
    provider
        .wait("nothing of home", SOON, || async {
            let shadows: Api<ShadowPod> = Api::all(provider.client.clone());
            let left = shadows.list_metadata(&ListParams::default()).await?.items.len();
            Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left} pods")) })
        })
        .await?;
    offloaded(home, "quota").await?;
    let course = course(home, provider).await;
    // Others would not get what they need.
    limit(provider, Value::Null).await?;
    course?;
    drop_namespace(home, "quota").await
}

async fn course(home: &Cluster, provider: &Cluster) -> anyhow::Result<()> {
    limit(provider, json!({ "cpu": "100m" })).await?;

    home.apply("quota", &bound("first", UNTIL_TOLD, NODE, "60m")).await?;
    wait_for(home, "first", "Running", SOON).await?;
    home.apply(
        "quota",
        &format!("{}---{}", bound("one", FOREVER, NODE, "40m"), bound("other", FOREVER, NODE, "40m")),
    )
    .await?;
    let (runs, waits) = home
        .wait("one of two runs", SOON, || async {
            let [one, other] = [status(home, "one").await?, status(home, "other").await?];
            let refused = |status: &PodStatus| status.reason.as_deref() == Some("QuotaExceeded");
            let runs = |status: &PodStatus| status.phase.as_deref() == Some("Running");
            Ok(match () {
                () if runs(&one) && refused(&other) => Look::Done(("one", "other")),
                () if runs(&other) && refused(&one) => Look::Done(("other", "one")),
                () => Look::NotYet(format!("{:?} {:?}", one.phase, other.phase)),
            })
        })
        .await?;
    let message = status(home, waits).await?.message.context("no message")?;
    for part in ["requested cpu=40m", "used cpu=100m", "limited cpu=100m"] {
        assert!(message.contains(part), "{part} is not in {message:?}");
    }
    home.wait("event", SOON, || async {
        let events = home.events("quota").await?;
        Ok(if events.contains("QuotaExceeded") { Look::Done(()) } else { Look::NotYet(events) })
    })
    .await?;

    // The sum is found again after a restart, and what runs is not touched.
    let before = provider.pods("quota-home", "").await?;
    provider
        .kubectl
        .run(["rollout", "restart", "-n", "liquid-system", "deployment/liquid-controller"])
        .await?
        .ok()?;
    provider
        .kubectl
        .run(["rollout", "status", "-n", "liquid-system", "deployment/liquid-controller"])
        .await?
        .ok()?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    home.apply("quota", &bound("late", FOREVER, NODE, "1m")).await?;
    wait_for(home, "late", "QuotaExceeded", SOON).await?;
    let uids = |pods: &[Pod]| pods.iter().map(|pod| pod.metadata.uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&before), uids(&provider.pods("quota-home", "").await?));

    // Who has ended makes room.
    home.kubectl.run(["exec", "-n", "quota", "first", "--", "touch", "/tmp/done"]).await?.ok()?;
    wait_for(home, "first", "Succeeded", SOON).await?;
    wait_for(home, waits, "Running", AT_ONCE).await?;
    wait_for(home, "late", "Running", AT_ONCE).await?;

    // 81m run. A lower limit evicts nobody, and lets nobody in.
    limit(provider, json!({ "cpu": "50m" })).await?;
    home.apply("quota", &bound("patient", FOREVER, NODE, "9m")).await?;
    wait_for(home, "patient", "QuotaExceeded", SOON).await?;
    for name in [runs, waits, "late"] {
        assert_eq!(status(home, name).await?.phase.as_deref(), Some("Running"), "{name}");
    }
    limit(provider, json!({ "cpu": "90m" })).await?;
    wait_for(home, "patient", "Running", AT_ONCE).await?;
    Ok(())
}
