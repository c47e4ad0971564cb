//! The certificates of one cluster, as kubeadm would lay them out (ECDSA P-256 throughout).
//!
//! Validity is rcgen's default (1975 to 4096): a lab lives for hours, and expiry is not what it is there to test.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::plan::address::{ClusterPlan, NodePlan};

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

/// The authorities of a cluster and the key that signs service-account tokens.
#[derive(Debug)]
pub(crate) struct ClusterPki {
    ca: Authority,
    front_proxy: Authority,
    service_accounts: KeyPair,
}

#[derive(Debug)]
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    identity: Identity,
}

impl ClusterPki {
    /// Makes new authorities for a cluster.
    ///
    /// # Errors
    /// Only if the system has no randomness.
    pub(crate) fn new(cluster: &str) -> anyhow::Result<Self> {
        Ok(Self {
            ca: Authority::new(&format!("{cluster} kubernetes"))?,
            front_proxy: Authority::new(&format!("{cluster} front-proxy"))?,
            service_accounts: KeyPair::generate().context("cannot make a key")?,
        })
    }

    /// The authority every certificate of the cluster is checked against.
    #[must_use]
    pub(crate) fn ca(&self) -> &Identity {
        &self.ca.identity
    }

    /// The authority that vouches for the API server towards aggregated APIs.
    #[must_use]
    pub(crate) fn front_proxy_ca(&self) -> &Identity {
        &self.front_proxy.identity
    }

    /// The service-account key pair; `certificate` holds the public key.
    #[must_use]
    pub(crate) fn service_accounts(&self) -> Identity {
        Identity {
            certificate: self.service_accounts.public_key_pem(),
            key: self.service_accounts.serialize_pem(),
        }
    }

    /// The API server's serving certificate.
    pub(crate) fn api_server(&self, plan: &ClusterPlan) -> anyhow::Result<Identity> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ];
        let addresses = [&plan.control_plane[..], &[plan.api_service, Ipv4Addr::LOCALHOST.into()]].concat();
        self.ca.issue("kube-apiserver", None, Usage::Server, &names, &addresses)
    }

    /// A client of the API server, known to it as `user` in `group`.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> anyhow::Result<Identity> {
        self.ca.issue(user, group, Usage::Client, &[], &[])
    }

    /// The API server as a client of aggregated APIs.
    pub(crate) fn front_proxy_client(&self) -> anyhow::Result<Identity> {
        self.front_proxy.issue("front-proxy-client", None, Usage::Client, &[], &[])
    }

    /// A kubelet as a client of the API server: node authorization goes by this name and group.
    pub(crate) fn kubelet_client(&self, node: &NodePlan) -> anyhow::Result<Identity> {
        self.client(&format!("system:node:{}", node.name), Some("system:nodes"))
    }

    /// A kubelet's serving certificate: the API server verifies it by the node's address.
    pub(crate) fn kubelet_server(&self, node: &NodePlan) -> anyhow::Result<Identity> {
        let name = format!("system:node:{}", node.name);
        let addresses = [&node.addresses[..], &[Ipv4Addr::LOCALHOST.into()]].concat();
        self.ca.issue(&name, Some("system:nodes"), Usage::Server, &[&node.name, "localhost"], &addresses)
    }
}

#[derive(Clone, Copy)]
enum Usage {
    Client,
    Server,
}

impl Authority {
    fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.self_signed(&key).context("cannot sign an authority's certificate")?;
        let identity = Identity { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok(Self { issuer: Issuer::new(params, key), identity })
    }

    fn issue(
        &self,
        name: &str,
        group: Option<&str>,
        usage: Usage,
        dns: &[&str],
        addresses: &[IpAddr],
    ) -> anyhow::Result<Identity> {
        let mut params = params(name, group);
        for name in dns {
            let name = (*name).try_into().with_context(|| format!("'{name}' cannot be a DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot sign {name}'s certificate"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::*;

    use super::*;
    use crate::plan::address::AddressPlan;
    use crate::plan::spec::LabSpec;

    fn plan() -> ClusterPlan {
        AddressPlan::new(&LabSpec::alone("a", 1), 3).clusters.remove(0)
    }

    fn check(identity: &Identity, issuer: &Identity, test: impl FnOnce(&X509Certificate<'_>)) {
        let (_, pem) = parse_x509_pem(identity.certificate.as_bytes()).unwrap();
        let (_, issuer) = parse_x509_pem(issuer.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        certificate.verify_signature(Some(issuer.parse_x509().unwrap().public_key())).unwrap();
        test(&certificate);
    }

    fn sans(certificate: &X509Certificate<'_>) -> Vec<String> {
        let extension = certificate.subject_alternative_name().unwrap().unwrap();
        let text = |name: &GeneralName<'_>| {
            if let GeneralName::IPAddress(bytes) = name {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                return v4.unwrap_or_else(|_| <[u8; 16]>::try_from(*bytes).unwrap().into()).to_string();
            }
            name.to_string().trim_start_matches("DNSName(").trim_end_matches(')').to_owned()
        };
        extension.value.general_names.iter().map(text).collect()
    }

    #[test]
    fn the_api_server_is_valid_for_every_address_it_is_reached_by() {
        let (pki, plan) = (ClusterPki::new("a").unwrap(), plan());
        check(&pki.api_server(&plan).unwrap(), pki.ca(), |certificate| {
            let names = sans(certificate);
            let addresses = ["10.96.0.1", "198.18.49.2", "127.0.0.1", "fd6c:6162:3:1::2"];
            for name in ["kubernetes.default.svc", "localhost"].into_iter().chain(addresses) {
                assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
            }
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && !usage.client_auth);
            assert!(!certificate.is_ca());
        });
    }

    #[test]
    fn a_kubelet_is_a_member_of_system_nodes_under_its_node_name() {
        let (pki, plan) = (ClusterPki::new("a").unwrap(), plan());
        check(&pki.kubelet_client(&plan.nodes[0]).unwrap(), pki.ca(), |certificate| {
            assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:a-1");
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.client_auth && !usage.server_auth);
        });
        check(&pki.kubelet_server(&plan.nodes[0]).unwrap(), pki.ca(), |certificate| {
            let names = sans(certificate);
            assert!(plan.nodes[0].addresses.iter().all(|address| names.contains(&address.to_string())));
        });
    }

    #[test]
    fn the_front_proxy_has_an_authority_of_its_own() {
        let pki = ClusterPki::new("a").unwrap();
        assert_ne!(pki.ca().certificate, pki.front_proxy_ca().certificate);
        check(&pki.front_proxy_client().unwrap(), pki.front_proxy_ca(), |certificate| {
            assert_eq!(certificate.subject().to_string(), "CN=front-proxy-client");
        });
        check(pki.ca(), pki.ca(), |certificate| assert!(certificate.is_ca()));
    }

    #[test]
    fn service_account_keys_come_as_a_public_and_a_private_half() {
        let pair = ClusterPki::new("a").unwrap().service_accounts();
        assert!(pair.certificate.starts_with("-----BEGIN PUBLIC KEY-----"));
        assert!(pair.key.starts_with("-----BEGIN PRIVATE KEY-----"));
    }
}
