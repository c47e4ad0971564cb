//! Pods on virtual nodes and the API server of home.

use crate::manifests::{FOREVER, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use liquid_lab::Progress;
use liquid_scenarios::{Cluster, Environment, Look, TEST_IMAGE};
use std::net::SocketAddr;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "access";
const THERE: &str = "access-home";
const KUBECTL_IMAGE: &str = "lab.local/kubectl:1";

/// An account that may read pods and nothing else.
const ACCOUNT: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
";

/// A pod with kubectl and an ordinary configuration, on nodes of one kind.
fn client(name: &str, virtual_node: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: client}}}}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 1000, fsGroup: 1000}}
  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{{key: liquid.mesh/type, operator: {virtual_node}}}]}}]}}}}}}
  containers:
    - name: main
      image: {KUBECTL_IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, {FOREVER:?}]
      volumeMounts: [{{name: vault, mountPath: /vault}}]
  volumes:
    - name: vault
      projected: {{sources: [{{serviceAccountToken: {{path: sub/token, audience: vault, expirationSeconds: 600}}}}]}}
"
    )
}

/// What a client finds out about itself; the same wherever it runs.
const LOOK_AROUND: &str = "
kubectl get pods -o name
kubectl get secrets
cd /var/run/secrets/kubernetes.io/serviceaccount
kubectl get --raw /readyz --server https://kubernetes.default.svc --certificate-authority ca.crt --token $(cat token); echo
cat namespace; echo
md5sum < ca.crt
stat -L -c '%a %g' token /vault/sub/token
env | cut -d= -f1 | grep ^KUBERNETES_ | sort
";

async fn run(home: &Cluster, pod: &str, script: &str) -> anyhow::Result<String> {
    Ok(home.shell(NAMESPACE, pod, script).await?.all())
}

async fn works(home: &Cluster) -> anyhow::Result<()> {
    home.wait("the client in the provider reads pods at home", SOON, || async {
        let said = run(home, "far", "timeout 5 kubectl get pods -o name").await?;
        Ok(if said == "pod/far\npod/near\n" { Look::Done(()) } else { Look::NotYet(said) })
    })
    .await
}

/// The one Secret of tokens in the provider.
async fn tokens(secrets: &Api<Secret>) -> anyhow::Result<Vec<Secret>> {
    let all = secrets.list(&ListParams::default()).await?;
    Ok(all.into_iter().filter(|secret| secret.name_any().starts_with("token-")).collect())
}

/// Would catch: pods that are refused or run without what they ask for, tokens that home does not accept or that are not bound
/// to their pod, files at other paths or with other modes than on a physical node, an API server that is not home's or not
/// verified, rights that home does not give, a way in for pods that were not let in, tokens that do not reach a running
/// container when they change or are asked for again without need, a way that does not survive a restart of what it leads
/// through, and tokens or rights that are left when the namespace does not say so any more.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the lab"]
async fn pods_use_homes_api_server_as_on_a_physical_node() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let lab = environment.lab.clone().context("this needs the lab")?;
    let import =
        move || ["a", "b"].iter().try_for_each(|it| lab.cluster(it)?.install_kubectl_image(&Progress::new()));
    tokio::task::spawn_blocking(import).await??;
    home.wait_for_network(&provider.name, SOON).await?;
    provider.wait_for_network(&home.name, SOON).await?;
    home.delete_namespace(NAMESPACE).await?;
    home.create_namespace(NAMESPACE).await?;
    let bound = ["offload", "namespace", NAMESPACE, "--service-account-tokens", "bound"];
    home.liquidctl.run(bound).await?.ok()?;
    let both = format!("{ACCOUNT}---{}---{}", client("near", "DoesNotExist"), client("far", "Exists"));
    home.apply(NAMESPACE, &both).await?;
    offloaded(home, "plain").await?;
    home.apply("plain", &pod("stranger", FOREVER).replace(TEST_IMAGE, KUBECTL_IMAGE)).await?;
    let pods = home.wait_for_pods(NAMESPACE, "app=client", 2, SOON).await?;
    works(home).await?;

    let (near, far) = (run(home, "near", LOOK_AROUND).await?, run(home, "far", LOOK_AROUND).await?);
    assert_eq!(near, far);
    assert!(
        far.starts_with("pod/far\npod/near\n") && far.contains("\nok\n") && far.contains("\naccess\n"),
        "{far}"
    );
    assert!(far.contains("system:serviceaccount:access:reader") && far.contains("640 1000"), "{far}");
    let claims = run(home, "far", "cut -d. -f2 /vault/sub/token | tr _- /+ | base64 -d 2>/dev/null").await?;
    let uid = pods.iter().find(|pod| pod.name_any() == "far").and_then(|pod| pod.uid()).unwrap();
    assert!(claims.contains(r#""aud":["vault"]"#) && claims.contains(&uid), "{claims}");
    let maps: Api<ConfigMap> = Api::namespaced(provider.client.clone(), THERE);
    let own = maps.get("kube-root-ca.crt").await?;
    assert_ne!(maps.get("kube-root-ca.crt.home.liquid.mesh").await?.data, own.data);

    // A new Secret reaches the container, whatever it was replaced for.
    let secrets: Api<Secret> = Api::namespaced(provider.client.clone(), THERE);
    let first = tokens(&secrets).await?.pop().context("no tokens")?;
    let file = run(home, "far", "md5sum < /vault/sub/token").await?;
    secrets.delete(&first.name_any(), &DeleteParams::default()).await?;
    let second = provider
        .wait("other tokens in the provider", SOON, || async {
            let found = tokens(&secrets).await?.pop();
            Ok(match found.filter(|found| found.uid() != first.uid()) {
                Some(found) => Look::Done(found),
                None => Look::NotYet("they are not there".to_owned()),
            })
        })
        .await?;
    assert_ne!(first.data, second.data);

    // It all goes through a process that may be another one, at another address, a moment later.
    let restart = ["rollout", "restart", "-n", "liquid-system", "deployment/liquid-kubelet"];
    home.kubectl.run(restart).await?.ok()?;
    let status = ["rollout", "status", "-n", "liquid-system", "deployment/liquid-kubelet", "--timeout=60s"];
    home.kubectl.run(status).await?.ok()?;
    home.wait_for_node("liquid-provider", true, SOON).await?;
    works(home).await?;
    let now = tokens(&secrets).await?.pop().context("no tokens")?;
    assert_eq!(now.resource_version(), second.resource_version(), "asked for again by a restart");

    // Somebody who was not let in finds the door, and is hung up on after a while.
    let services: Api<Service> = Api::namespaced(provider.client.clone(), THERE);
    let door = services.get("liquid-home-kubernetes").await?.spec.and_then(|spec| spec.cluster_ip).unwrap();
    home.wait_for_pods("plain", "app=stranger", 1, SOON).await?;
    let door = SocketAddr::new(door.parse()?, 443);
    let knock =
        format!("kubectl get --raw /version --insecure-skip-tls-verify --server https://{door} --token x");
    let knocking = home.kubectl.start(["exec", "-n", "plain", "stranger", "--", "sh", "-c", &knock])?;

    // Kubelets look at the volumes of a pod every 60 to 90 s, and when it changes.
    let touch = ["annotate", "pod", "-n", THERE, "far", "example.org/touched=yes"];
    provider.kubectl.run(touch).await?.ok()?;
    home.wait("the new token in the container", SOON, || async {
        let now = run(home, "far", "md5sum < /vault/sub/token").await?;
        Ok(if now != file { Look::Done(()) } else { Look::NotYet(now) })
    })
    .await?;
    works(home).await?;
    let knocked = knocking.wait_with_output().await?;
    let said = String::from_utf8_lossy(&knocked.stderr).into_owned();
    let hung_up = ["EOF", "connection reset"].iter().any(|end| said.contains(end));
    assert!(!knocked.status.success() && hung_up, "{said}");

    // When the namespace does not say so any more, no tokens are left, and nobody may ask for others.
    home.liquidctl.run(["offload", "namespace", NAMESPACE]).await?.ok()?;
    let bindings: Api<RoleBinding> = Api::namespaced(home.client.clone(), NAMESPACE);
    home.wait("no tokens, and no right to any", SOON, || async {
        let left = tokens(&secrets).await?.len();
        let right = bindings.get_metadata_opt("liquid-kubelet-tokens").await?.is_some();
        let way = services.get_metadata_opt("liquid-home-kubernetes").await?.is_some();
        let gone = left == 0 && !right && !way;
        Ok(if gone {
            Look::Done(())
        } else {
            Look::NotYet(format!("{left} tokens, right: {right}, way: {way}"))
        })
    })
    .await?;
    drop_namespace(home, "plain").await?;
    drop_namespace(home, NAMESPACE).await
}
