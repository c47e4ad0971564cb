//! Pods on a virtual node.

use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded, pod};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use liquid_crds::ShadowPod;
use liquid_scenarios::{Environment, Look};
use std::collections::BTreeSet;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Would catch: pods that do not reach the provider, that only seem to run, that are not counted, doubled or left there
/// when they are scaled down or deleted; and anything in the manifest that would have to know of Liquid.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_deployment_with_node_affinity_runs_in_the_provider() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "pods").await?;
    home.apply("pods", &deployment("web", 2, FOREVER)).await?;

    let pods = home.wait_for_pods("pods", "app=web", 2, SOON).await?;
    for pod in &pods {
        assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("liquid-provider"));
    }
    let remote = provider.wait_for_pods("pods-home", "app=web", 2, SOON).await?;
    let names = |pods: &[Pod]| pods.iter().map(|pod| pod.name_any()).collect::<BTreeSet<_>>();
    assert_eq!(names(&pods), names(&remote));
    for pod in &remote {
        let status = pod.status.as_ref().unwrap();
        let running = status.container_statuses.iter().flatten().any(|c| {
            c.container_id.is_some() && c.state.as_ref().is_some_and(|state| state.running.is_some())
        });
        assert!(running, "{} has no running container", pod.name_any());
    }

    for replicas in [5, 1] {
        let scale = format!("--replicas={replicas}");
        home.kubectl.run(["scale", "-n", "pods", "deployment/web", &scale]).await?.ok()?;
        home.wait_for_pods("pods", "app=web", replicas, SOON).await?;
        provider.wait_for_pods("pods-home", "app=web", replicas, SOON).await?;
    }

    home.kubectl.run(["delete", "-n", "pods", "deployment/web"]).await?.ok()?;
    home.wait_for_pods("pods", "app=web", 0, SOON).await?;
    provider.wait_for_pods("pods-home", "app=web", 0, SOON).await?;
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "pods-home");
    assert_eq!(shadows.list(&ListParams::default()).await?.items.len(), 0);
    drop_namespace(home, "pods").await
}

/// Would catch: results of finished pods that do not come home, and finished pods that are started again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn finished_pods_report_their_exit_code_and_stay_finished() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "finish").await?;
    home.apply("finish", &pod("good", "exit 0")).await?;
    home.apply("finish", &pod("bad", "echo why > /dev/termination-log; exit 3")).await?;
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "finish");
    for (name, phase, code, message) in [("good", "Succeeded", 0, None), ("bad", "Failed", 3, Some("why\n"))]
    {
        let pod = home
            .wait(&format!("{name} {phase}"), SOON, || async {
                let pod = pods.get(name).await?;
                let now = pod.status.clone().and_then(|status| status.phase).unwrap_or_default();
                Ok(if now == phase { Look::Done(pod) } else { Look::NotYet(now) })
            })
            .await?;
        let ended =
            pod.status.unwrap().container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!((ended.exit_code, ended.message.as_deref()), (code, message));
    }
    // The owner of the provider cleans up: the result stays, and nothing is run again.
    let remote: Api<Pod> = Api::namespaced(provider.client.clone(), "finish-home");
    let shadows: Api<ShadowPod> = Api::namespaced(provider.client.clone(), "finish-home");
    provider
        .wait("final status kept", SOON, || async {
            let kept = shadows.get("bad").await?.status.and_then(|status| status.phase);
            Ok(if kept.is_some() { Look::Done(()) } else { Look::NotYet("not kept yet".to_owned()) })
        })
        .await?;
    remote.delete("bad", &DeleteParams::default()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(remote.get_opt("bad").await?.is_none(), "a finished pod was started again");
    assert_eq!(pods.get("bad").await?.status.unwrap().phase.as_deref(), Some("Failed"));
    drop_namespace(home, "finish").await
}

/// Would catch: pods that hang without a word because they need something that does not go with them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_cannot_work_remotely_is_refused_where_the_user_looks() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "refused").await?;
    let mut manifest = pod("needs-files", "true");
    manifest.push_str("  volumes: [{name: files, hostPath: {path: /etc}}]\n");
    home.apply("refused", &manifest).await?;
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "refused");
    let status = home
        .wait("refusal in the status", SOON, || async {
            let status = pods.get("needs-files").await?.status.unwrap_or_default();
            Ok(match status.reason {
                Some(_) => Look::Done(status),
                None => Look::NotYet("no reason yet".to_owned()),
            })
        })
        .await?;
    assert_eq!(status.reason.as_deref(), Some("UnsupportedOnVirtualNode"));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert!(status.message.unwrap().contains("volume files"));
    home.wait("event", SOON, || async {
        let events = home.events("refused").await?;
        Ok(if events.contains("volume files") { Look::Done(()) } else { Look::NotYet(events) })
    })
    .await?;
    drop_namespace(home, "refused").await
}

/// Would catch: a provider whose own policy is by-passed by what comes over the link.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn the_provider_decides_what_it_runs() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "policy").await?;
    let manifest = pod("privileged", "sleep 60").replace(
        "      imagePullPolicy: IfNotPresent\n",
        "      imagePullPolicy: IfNotPresent\n      securityContext: {privileged: true}\n",
    );
    home.apply("policy", &manifest).await?;
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "policy");
    let status = home
        .wait("refusal in the status", SOON, || async {
            let status = pods.get("privileged").await?.status.unwrap_or_default();
            Ok(match status.reason {
                Some(_) => Look::Done(status),
                None => Look::NotYet("no reason yet".to_owned()),
            })
        })
        .await?;
    assert!(status.message.unwrap().contains("privileged"), "the message says why");
    assert!(provider.pods("policy-home", "").await?.is_empty());
    drop_namespace(home, "policy").await
}

/// Would catch: pods outside offloaded namespaces that land on virtual nodes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_of_other_namespaces_stay_away_from_virtual_nodes() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    drop_namespace(home, "other").await?;
    home.create_namespace("other").await?;
    home.apply("other", &pod("stranger", "sleep 60")).await?;
    let pods: Api<Pod> = Api::namespaced(home.client.clone(), "other");
    home.wait("the scheduler's word", SOON, || async {
        let status = pods.get("stranger").await?.status.unwrap_or_default();
        let scheduled = status.conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled");
        Ok(match scheduled {
            Some(condition) if condition.reason.as_deref() == Some("Unschedulable") => Look::Done(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    drop_namespace(home, "other").await
}

/// Would catch: pods that have to be made anew because their namespace was offloaded after them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_may_be_there_before_their_namespace_is_offloaded() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    home.delete_namespace("early").await?;
    home.create_namespace("early").await?;
    home.apply("early", &deployment("web", 2, FOREVER)).await?;
    let before = home
        .wait("two pods wait for a node", SOON, || async {
            let pods = home.pods("early", "app=web").await?;
            Ok(if pods.len() == 2 { Look::Done(pods) } else { Look::NotYet(format!("{} pods", pods.len())) })
        })
        .await?;
    home.liquidctl.run(["offload", "namespace", "early"]).await?.ok()?;
    let after = home.wait_for_pods("early", "app=web", 2, SOON).await?;
    let uids = |pods: &[Pod]| pods.iter().filter_map(|pod| pod.uid()).collect::<BTreeSet<_>>();
    assert_eq!(uids(&before), uids(&after), "the same pods");
    drop_namespace(home, "early").await
}

/// Would catch: pods of which nobody at home learns why they do not start, and Events that pile up instead of being counted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn warnings_of_the_provider_are_events_at_home() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "warnings").await?;
    let manifest = pod("stuck", "true").replace(liquid_scenarios::TEST_IMAGE, "lab.local/nowhere:1");
    home.apply("warnings", &manifest).await?;
    let events: Api<Event> = Api::namespaced(home.client.clone(), "warnings");
    let of_pod = ListParams::default().fields("involvedObject.name=stuck,type=Warning");
    let found = home
        .wait("a warning that is counted up", Duration::from_secs(120), || async {
            let all = events.list(&of_pod).await?.items;
            Ok(if all.iter().any(|event| event.count.is_some_and(|count| count > 1)) {
                Look::Done(all)
            } else {
                Look::NotYet(format!("{} events", all.len()))
            })
        })
        .await?;
    let uid = Api::<Pod>::namespaced(home.client.clone(), "warnings").get("stuck").await?.uid();
    for event in &found {
        assert_eq!(event.involved_object.uid, uid);
        let source = event.source.clone().unwrap_or_default();
        assert_eq!(source.host.as_deref(), Some(provider.name.as_str()), "{event:?}");
        assert_eq!(source.component, Some(format!("{}/kubelet", provider.name)));
    }
    let kinds: BTreeSet<_> = found.iter().map(|event| (&event.reason, &event.message)).collect();
    assert_eq!(kinds.len(), found.len(), "each warning is one Event: {found:?}");
    let told = home.kubectl.run(["describe", "pod", "-n", "warnings", "stuck"]).await?.ok()?;
    assert!(told.contains("lab.local/nowhere:1") && told.contains("provider/kubelet"), "{told}");
    drop_namespace(home, "warnings").await
}
