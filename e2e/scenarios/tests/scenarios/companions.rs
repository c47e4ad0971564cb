//! What pods need beside them: ConfigMaps, Secrets and Services.

use crate::manifests::{FOREVER, deployment, drop_namespace, offloaded, pod};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use liquid_scenarios::{Cluster, Environment, Look};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A pod that shows, in its log, everything it was given.
const READER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {app: reader}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  nodeSelector: {liquid.mesh/type: virtual-node}
  containers:
    - name: main
      image: lab.local/busybox:1
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "echo $COLOR $PASSWORD $SIZE; cat /config/motd /both/motd /both/key; while :; do cat /config/motd; sleep 1; done"]
      env:
        - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: database, key: password}}}
        - {name: ABSENT, valueFrom: {configMapKeyRef: {name: nowhere, key: x, optional: true}}}
      envFrom: [{configMapRef: {name: sizes}}]
      volumeMounts: [{name: config, mountPath: /config}, {name: both, mountPath: /both}]
  volumes:
    - {name: config, configMap: {name: settings}}
    - name: both
      projected: {sources: [{configMap: {name: settings}}, {secret: {name: database}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {team: blue}}
data: {color: green, motd: "hello from home\n"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: sizes}
immutable: true
data: {SIZE: large}
---
apiVersion: v1
kind: Secret
metadata: {name: database}
stringData: {password: hunter2, key: "secret key\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: nobody-refers-to-it}
stringData: {password: x}
"#;

async fn there<K>(cluster: &Cluster, api: &Api<K>, name: &str) -> anyhow::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    cluster
        .wait(&format!("{} {name}", K::kind(&())), SOON, || async {
            Ok(match api.get_opt(name).await? {
                Some(found) => Look::Done(found),
                None => Look::NotYet("it is not there".to_owned()),
            })
        })
        .await
}

/// Would catch: pods that do not find their configuration, Secrets in the provider that no pod there needs, changes and
/// deletions that do not arrive, and objects that are written again although nothing has changed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_find_the_configuration_they_refer_to() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "config").await?;
    home.apply("config", READER).await?;
    home.wait_for_pods("config", "app=reader", 1, SOON).await?;
    let log = |expected: &'static str| async move {
        home.wait(&format!("{expected:?} in the log"), Duration::from_secs(120), || async {
            let log = home.kubectl.run(["logs", "-n", "config", "reader"]).await?.ok()?;
            Ok(if log.contains(expected) { Look::Done(()) } else { Look::NotYet(log) })
        })
        .await
    };
    log("green hunter2 large\nhello from home\nhello from home\nsecret key\n").await?;

    let secrets: Api<Secret> = Api::namespaced(provider.client.clone(), "config-home");
    let maps: Api<ConfigMap> = Api::namespaced(provider.client.clone(), "config-home");
    let names = |all: Vec<String>| all.join(" ");
    let all: Vec<String> = secrets.list(&Default::default()).await?.iter().map(|o| o.name_any()).collect();
    assert_eq!(names(all), "database");
    let settings = maps.get("settings").await?;
    assert_eq!(settings.labels().get("team").map(String::as_str), Some("blue"));
    let root = maps.get("kube-root-ca.crt").await?;
    assert!(root.labels().is_empty(), "the provider's own is left alone");

    // A change arrives (in the volumes of pods, the provider's kubelet takes up to a minute more), and nothing is written
    // without one.
    home.kubectl
        .run([
            "patch",
            "-n",
            "config",
            "configmap/settings",
            "--type=merge",
            "-p",
            r#"{"data":{"motd":"changed\n"}}"#,
        ])
        .await?
        .ok()?;
    provider
        .wait("the change in the provider", SOON, || async {
            let motd = maps.get("settings").await?.data.and_then(|mut data| data.remove("motd"));
            Ok(if motd.as_deref() == Some("changed\n") {
                Look::Done(())
            } else {
                Look::NotYet(format!("{motd:?}"))
            })
        })
        .await?;
    let before = maps.get("settings").await?.resource_version();
    let restart = ["rollout", "restart", "-n", "liquid-system", "deployment/liquid-kubelet"];
    home.kubectl.run(restart).await?.ok()?;
    let status = ["rollout", "status", "-n", "liquid-system", "deployment/liquid-kubelet", "--timeout=60s"];
    home.kubectl.run(status).await?.ok()?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    // Whatever the new process has to say comes before a change made after it was ready.
    home.apply("config", &pod("later", FOREVER)).await?;
    home.wait_for_pods("config", "app=later", 1, SOON).await?;
    assert_eq!(maps.get("settings").await?.resource_version(), before, "written again by a restart");
    assert!(secrets.get_opt("database").await?.is_some());

    home.kubectl.run(["delete", "-n", "config", "pod", "reader"]).await?.ok()?;
    provider.wait_until_gone(&secrets, "database", SOON).await?;
    provider.wait_until_gone(&maps, "settings", SOON).await?;
    provider.wait_until_gone(&maps, "sizes", SOON).await?;
    drop_namespace(home, "config").await
}

/// Would catch: objects of the provider that are taken over, and conflicts nobody hears of.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn what_the_provider_has_of_that_name_is_left_alone() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "conflict").await?;
    provider.apply("conflict-home", READER.split("---").nth(1).unwrap()).await?;
    home.apply("conflict", READER).await?;
    home.wait("an event on the ConfigMap", SOON, || async {
        let events = home.events("conflict").await?;
        let told =
            events.contains("event settings: Conflict: the provider has a ConfigMap settings of its own");
        Ok(if told { Look::Done(()) } else { Look::NotYet(events) })
    })
    .await?;
    // When the owner gives way, it arrives by itself.
    provider.kubectl.run(["delete", "-n", "conflict-home", "configmap", "settings"]).await?.ok()?;
    let maps: Api<ConfigMap> = Api::namespaced(provider.client.clone(), "conflict-home");
    let ours = there(provider, &maps, "settings").await?;
    assert!(ours.labels().contains_key("liquid.mesh/origin-cluster"));
    drop_namespace(home, "conflict").await
}

/// Would catch: a policy that is not followed, or not when it changes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_namespace_says_what_is_reflected_of_it() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "policy").await?;
    home.apply("policy", READER).await?;
    home.apply("policy", &deployment("web", 1, FOREVER)).await?;
    home.kubectl.run(["expose", "-n", "policy", "deployment/web", "--port=80"]).await?.ok()?;
    let secrets: Api<Secret> = Api::namespaced(provider.client.clone(), "policy-home");
    let maps: Api<ConfigMap> = Api::namespaced(provider.client.clone(), "policy-home");
    let services: Api<Service> = Api::namespaced(provider.client.clone(), "policy-home");
    there(provider, &secrets, "database").await?;
    there(provider, &services, "web").await?;
    assert!(secrets.get_opt("nobody-refers-to-it").await?.is_none());

    let offload =
        ["offload", "namespace", "policy", "--secrets", "all", "--config-maps", "none", "--services", "none"];
    home.liquidctl.run(offload).await?.ok()?;
    there(provider, &secrets, "nobody-refers-to-it").await?;
    provider.wait_until_gone(&maps, "settings", SOON).await?;
    provider.wait_until_gone(&services, "web", SOON).await?;
    home.liquidctl.run(["offload", "namespace", "policy"]).await?.ok()?;
    provider.wait_until_gone(&secrets, "nobody-refers-to-it", SOON).await?;
    there(provider, &maps, "settings").await?;
    there(provider, &services, "web").await?;
    drop_namespace(home, "policy").await
}

/// Would catch: Services by which pods in the provider do not find each other, and ways in from outside that open there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn pods_in_the_provider_find_each_other_by_service() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "services").await?;
    let serve = r"echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp & trap exit TERM; while :; do sleep 1 & wait $!; done";
    home.apply("services", &deployment("web", 2, serve)).await?;
    let expose =
        ["expose", "-n", "services", "deployment/web", "--port=80", "--target-port=8080", "--type=NodePort"];
    home.kubectl.run(expose).await?.ok()?;
    home.apply("services", &deployment("client", 1, FOREVER)).await?;
    let client = home.wait_for_pods("services", "app=client", 1, SOON).await?[0].name_any();
    home.wait_for_pods("services", "app=web", 2, SOON).await?;
    let services: Api<Service> = Api::namespaced(provider.client.clone(), "services-home");
    let spec = there(provider, &services, "web").await?.spec.unwrap();
    assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
    home.wait("an answer of the Service", SOON, || async {
        let exec =
            ["exec", "-n", "services", &client, "--", "wget", "-q", "-O", "-", "http://web/index.html"];
        let output = home.kubectl.run(exec).await?;
        Ok(if output.out == "served\n" { Look::Done(()) } else { Look::NotYet(format!("{output:?}")) })
    })
    .await?;

    // A change of ports keeps the address.
    let address = spec.cluster_ip.clone();
    let at_home: Api<Service> = Api::namespaced(home.client.clone(), "services");
    let ports = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": 8080, "name": "more"}]}});
    let mut named = ports.clone();
    named["spec"]["ports"][0]["name"] = json!("http");
    at_home.patch("web", &PatchParams::default(), &Patch::Merge(&named)).await?;
    provider
        .wait("the new port", SOON, || async {
            let spec = services.get("web").await?.spec.unwrap();
            assert_eq!(spec.cluster_ip, address);
            let ports: Vec<i32> = spec.ports.iter().flatten().map(|port| port.port).collect();
            Ok(if ports == [80, 81] { Look::Done(()) } else { Look::NotYet(format!("{ports:?}")) })
        })
        .await?;
    let pods: Api<Pod> = Api::namespaced(provider.client.clone(), "services-home");
    assert_eq!(pods.list(&Default::default()).await?.items.len(), 3);
    drop_namespace(home, "services").await
}

const INGRESS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: certificate}
data: {tls.crt: eA==, tls.key: eQ==}
type: kubernetes.io/tls
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, annotations: {example.org/kept: a, example.org/snippet: b}}
spec:
  ingressClassName: of-home
  tls: [{hosts: [web.shop.example.org], secretName: certificate}]
  rules:
    - host: web.shop.example.org
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"#;

/// Would catch: ways in from outside that a provider has not opened, or not closed again; hosts, classes and annotations it has
/// not agreed to; hosts that are somebody else's there; and certificates that do not go along.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn ingresses_exist_where_both_sides_say_so() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    offloaded(home, "doors").await?;
    home.apply("doors", INGRESS).await?;
    let ingresses: Api<Ingress> = Api::namespaced(provider.client.clone(), "doors-home");
    let secrets: Api<Secret> = Api::namespaced(provider.client.clone(), "doors-home");
    let lend = |ingress: Value| async move {
        provider.change_peer("home", json!({"lend": {"ingress": ingress}})).await
    };
    let told = |what: &'static str| async move {
        home.wait(&format!("an event {what}"), SOON, || async {
            let events = home.events("doors").await?;
            Ok(if events.contains(what) { Look::Done(()) } else { Look::NotYet(events) })
        })
        .await
    };
    home.liquidctl.run(["offload", "namespace", "doors", "--ingresses", "all"]).await?.ok()?;
    told("IngressNotLent: the provider takes no Ingresses").await?;
    assert!(ingresses.get_opt("web").await?.is_none());

    // Somebody there has that host already.
    provider.create_namespace("doors-taken").await?;
    provider.apply("doors-taken", &INGRESS.replace("of-home", "public")).await?;
    let terms =
        json!({"className": "public", "hosts": ["*.shop.example.org"], "annotations": ["example.org/kept"]});
    lend(terms).await?;
    told("IngressHostConflict").await?;
    provider.delete_namespace("doors-taken").await?;
    let made = there(provider, &ingresses, "web").await?;
    assert_eq!(made.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref()), Some("public"));
    assert_eq!(made.annotations().get("example.org/kept").map(String::as_str), Some("a"));
    assert!(!made.annotations().contains_key("example.org/snippet"));
    there(provider, &secrets, "certificate").await?;

    lend(Value::Null).await?;
    provider.wait_until_gone(&ingresses, "web", SOON).await?;
    home.liquidctl.run(["offload", "namespace", "doors"]).await?.ok()?;
    provider.wait_until_gone(&secrets, "certificate", SOON).await?;
    drop_namespace(home, "doors").await
}
