//! The lease by which the node controller knows that somebody looks after a node.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use std::time::Duration;

/// The kubelet's own figures: 40 s of validity, renewed at a quarter of it.
const DURATION_SECONDS: i32 = 40;
/// Time between two renewals.
pub(super) const RENEW_INTERVAL: Duration = Duration::from_secs(10);

/// Renews the lease of `node`, whose Node object has this UID.
pub(super) async fn renew(client: &Client, node: &str, uid: &str) -> Result<(), kube::Error> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let apply = PatchParams::apply("liquid-kubelet").force();
    leases.patch(node, &apply, &Patch::Apply(&lease)).await?;
    Ok(())
}
