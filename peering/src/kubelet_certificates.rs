//! Approves the serving certificates of virtual nodes: the cluster's own signer makes them, so every client that trusts
//! kubelets trusts them.

use futures::StreamExt as _;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use liquid_crds::VirtualNode;
use liquid_runtime::watch::{Change, changes};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Label of the pods of `liquid-kubelet`, set by the chart.
const KUBELET_PODS: &str = "app.kubernetes.io/name=liquid,app.kubernetes.io/component=kubelet";
/// What a kubelet's serving certificate may be used for.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

/// How often requests that were not approved are checked again: the address of a new liquid-kubelet may get into its status after
/// its request is made.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows certificate requests and approves those of virtual nodes.
pub(crate) async fn approve(client: Client, namespace: String) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let of_kubelets = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let mut news = changes(requests.clone(), of_kubelets).boxed();
    let approver = Approver {
        requester: format!("system:serviceaccount:{namespace}:liquid-kubelet"),
        client,
        namespace,
        requests,
    };
    // Left undecided, and why: an administrator can see them and decide.
    let mut undecided: BTreeMap<String, (CertificateSigningRequest, String)> = BTreeMap::new();
    loop {
        let change = tokio::select! {
            change = news.next() => match change {
                Some(change) => change,
                None => return,
            },
            () = sleep(AGAIN), if !undecided.is_empty() => {
                for (name, (request, known)) in std::mem::take(&mut undecided) {
                    if let Err(reason) = approver.decide(&request, Some(&known)).await {
                        undecided.insert(name, (request, reason));
                    }
                }
                continue;
            }
        };
        match change {
            Change::Applied(request) => {
                let name = request.name_any();
                let known = undecided.remove(&name).map(|(_, reason)| reason);
                if let Err(reason) = approver.decide(&request, known.as_deref()).await {
                    undecided.insert(name, (request, reason));
                }
            }
            Change::Deleted(request) => drop(undecided.remove(&request.name_any())),
            Change::Listed(there) => {
                undecided.retain(|name, _| there.contains(&(String::new(), name.clone())))
            }
        }
    }
}

struct Approver {
    client: Client,
    namespace: String,
    requester: String,
    requests: Api<CertificateSigningRequest>,
}

impl Approver {
    /// Approves a request if it is to be. The error says why it was left undecided; it is logged unless it is known.
    async fn decide(&self, request: &CertificateSigningRequest, known: Option<&str>) -> Result<(), String> {
        if request.spec.username.as_deref() != Some(&self.requester) || is_decided(request) {
            return Ok(());
        }
        let name = request.name_any();
        let approved = async {
            let node = check(&self.client, &self.namespace, request).await?;
            write_approval(&self.requests, request.clone()).await.map_err(|error| error.to_string())?;
            Ok(node)
        };
        let result: Result<String, String> = approved.await;
        match &result {
            Ok(node) => info!(request = %name, %node, "serving certificate of a virtual node approved"),
            Err(reason) if known == Some(reason.as_str()) => {}
            Err(reason) => warn!(request = %name, %reason, "serving certificate not approved"),
        }
        result.map(drop)
    }
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|c| !c.is_empty())
}

/// Checks that the request names a virtual node, and only addresses of our own pods.
async fn check(
    client: &Client,
    namespace: &str,
    request: &CertificateSigningRequest,
) -> Result<String, String> {
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    if let Some(usage) = usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(format!("usage {usage} is not that of a kubelet"));
    }
    let asked = read(&request.spec.request.0)?;
    let nodes: Api<VirtualNode> = Api::all(client.clone());
    let known = nodes.get_opt(&asked.node).await.map_err(|error| error.to_string())?;
    if known.is_none() {
        return Err(format!("there is no VirtualNode {}", asked.node));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&ListParams::default().labels(KUBELET_PODS)).await.map_err(|e| e.to_string())?;
    let own: Vec<String> = pods
        .into_iter()
        .filter_map(|pod| pod.status)
        .flat_map(|status| status.pod_ips.unwrap_or_default())
        .map(|ip| ip.ip)
        .collect();
    match asked.addresses.iter().find(|address| !own.contains(&address.to_string())) {
        Some(address) => Err(format!("{address} is no address of liquid-kubelet")),
        None => Ok(asked.node),
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    node: String,
    addresses: Vec<IpAddr>,
}

fn read(pem: &[u8]) -> Result<Asked, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| error.to_string())?;
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    let organization: Vec<_> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let node = name.strip_prefix("system:node:").filter(|_| organization == ["system:nodes"]);
    let node = node.ok_or_else(|| format!("{subject} is no node"))?.to_owned();
    let mut addresses = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(dns) if *dns == node => {}
                    GeneralName::IPAddress(bytes) => addresses.push(address(bytes)?),
                    other => return Err(format!("{other} may not be in it")),
                }
            }
        }
    }
    if addresses.is_empty() { Err("it names no address".to_owned()) } else { Ok(Asked { node, addresses }) }
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(v6))
    } else {
        Err("an address has the wrong length".to_owned())
    }
}

async fn write_approval(
    api: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
) -> Result<(), kube::Error> {
    let approved = CertificateSigningRequestCondition {
        type_: "Approved".to_owned(),
        status: "True".to_owned(),
        reason: Some("LiquidVirtualNode".to_owned()),
        message: Some("serving certificate of a virtual node".to_owned()),
        last_update_time: Some(Time(Timestamp::now())),
        ..CertificateSigningRequestCondition::default()
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(approved);
    let name = request.name_any();
    api.replace_subresource("approval", &name, &PostParams::default(), &request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn request(organization: &str, name: &str, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes()
    }

    #[test]
    fn the_request_of_a_virtual_node_is_understood() {
        let address: IpAddr = "10.244.0.7".parse().unwrap();
        let pem = request("system:nodes", "system:node:liquid-milan", vec![SanType::IpAddress(address)]);
        assert_eq!(read(&pem), Ok(Asked { node: "liquid-milan".to_owned(), addresses: vec![address] }));
    }

    #[test]
    fn others_are_not() {
        let ip = || SanType::IpAddress("10.244.0.7".parse().unwrap());
        let dns = || SanType::DnsName("kubernetes.default".try_into().unwrap());
        for pem in [
            request("system:masters", "system:node:liquid-milan", vec![ip()]),
            request("system:nodes", "admin", vec![ip()]),
            request("system:nodes", "system:node:liquid-milan", vec![ip(), dns()]),
            request("system:nodes", "system:node:liquid-milan", vec![]),
            b"rubbish".to_vec(),
        ] {
            assert!(read(&pem).is_err());
        }
    }
}
