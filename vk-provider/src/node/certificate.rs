//! The serving certificate of a virtual node, made by the cluster's own signer for kubelets.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID};
use liquid_runtime::tls::certified_key;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Asked for; the signer may give less.
const EXPIRATION_SECONDS: i32 = 30 * 24 * 3600;
/// Approval and signing take milliseconds; an administrator may have to approve by hand.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked whether the certificate is there.
const POLL: Duration = Duration::from_millis(50);
const SLOW_POLL: Duration = Duration::from_secs(1);

/// A certificate, and when it should be replaced.
pub(super) struct Serving {
    pub(super) key: CertifiedKey,
    pub(super) renew_in: Duration,
}

/// Gets a serving certificate for the kubelet API of `node` at `address`. `uid` is that of the Node.
pub(super) async fn obtain(
    client: &Client,
    node: &str,
    uid: Option<String>,
    address: IpAddr,
) -> Result<Serving> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = vec![SanType::IpAddress(address)];
    let pem = params.serialize_request(&key)?.pem()?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("{node}-")),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            // Should this process end before it deletes the request, it goes with the Node.
            owner_references: uid.map(|uid| vec![owner(node, uid)]),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: "kubernetes.io/kubelet-serving".to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "server auth".to_owned()]),
            expiration_seconds: Some(EXPIRATION_SECONDS),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = requests.create(&PostParams::default(), &request).await?.name_any();
    let signed = wait(&requests, &name).await;
    // A request that has been answered, or never will be, is of no more use to anyone.
    drop(requests.delete(&name, &DeleteParams::default()).await);
    let chain = signed?;
    let certified = certified_key(&chain, key.serialize_pem().as_bytes())?;
    Ok(Serving { renew_in: renew_in(&certified)?, key: certified })
}

fn owner(node: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid,
        ..OwnerReference::default()
    }
}

async fn wait(requests: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>> {
    let deadline = Instant::now() + SIGN_TIMEOUT;
    let mut poll = POLL;
    loop {
        let status = requests.get(name).await.context("cannot read the certificate request")?.status;
        let status = status.unwrap_or_default();
        let refused =
            status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
        if let Some(condition) = refused {
            bail!("certificate request {name}: {}", condition.message.as_deref().unwrap_or(&condition.type_));
        }
        if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
            return Ok(certificate.0);
        }
        if Instant::now() >= deadline {
            bail!(
                "certificate request {name} was not approved and signed within {} s; liquid-controller approves it, \
                 and the signer kubernetes.io/kubelet-serving of kube-controller-manager signs it",
                SIGN_TIMEOUT.as_secs()
            );
        }
        sleep(poll).await;
        poll = (poll * 5 / 4).min(SLOW_POLL);
    }
}

/// Two thirds of what is left of its life.
fn renew_in(certified: &CertifiedKey) -> Result<Duration> {
    let leaf = certified.cert.first().context("the signer returned no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf).context("the signer's certificate cannot be read")?;
    let left = leaf.validity().not_after.timestamp() - time::OffsetDateTime::now_utc().unix_timestamp();
    Ok(Duration::from_secs(u64::try_from(left).unwrap_or(0)) * 2 / 3)
}
