//! The control plane of a cluster: which programs run with which flags, and the files they read.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;

use crate::cluster::api_client::ApiClient;
use crate::cluster::kubeconfig;
use crate::cluster::pki::{ClusterPki, Identity};
use crate::machine::{Condition, Config, Machine, Unit, write_json};
use crate::plan::address::ClusterPlan;
use crate::plan::layout::{Layout, control_plane_machine};

/// Directory of keys and certificates, by path below `/etc`.
const PKI: &str = "kubernetes/pki";
/// Where clients find the API server.
const API_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
/// Where an API server that was asked to writes what it is asked, by path inside the machine.
pub(crate) const AUDIT_LOG: &str = "/var/log/kubernetes/audit.log";
const AUDIT_DIRECTORY: &str = "/var/log/kubernetes";
const ETCD_DATA: &str = "/var/lib/etcd";
/// Every request once, with who asked for what: enough to count, small enough to keep.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
 "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}"#;

/// The URL of a cluster's API server.
pub(crate) fn server(plan: &ClusterPlan) -> String {
    format!("https://{}", SocketAddr::new(plan.control_plane[0], API_PORT))
}

/// Writes everything the control plane's machine needs, and the administrator's kubeconfig.
pub(crate) fn configure(
    layout: &Layout,
    plan: &ClusterPlan,
    pki: &ClusterPki,
    audit: bool,
    shared: &[PathBuf],
) -> anyhow::Result<Machine> {
    let name = control_plane_machine(&plan.name);
    let machine = Machine::new(layout.machine(&name), layout.name().as_str(), &name);
    machine.write_etc("hosts", format!("127.0.0.1 localhost\n{} {name}\n", plan.control_plane[0]))?;
    machine.write_etc("resolv.conf", "")?;
    machine.write_identity()?;
    write_keys(&machine, plan, pki)?;
    machine.create_owned(ETCD_DATA, plan.user)?;
    machine.create_owned(AUDIT_DIRECTORY, plan.user)?;
    for user in ["kube-controller-manager", "kube-scheduler"] {
        let identity = pki.client(&format!("system:{user}"), None)?;
        let config = kubeconfig(plan, pki, user, &identity);
        machine.write_etc(&format!("kubernetes/{user}.kubeconfig"), config.to_string())?;
    }
    if audit {
        machine.write_etc("kubernetes/audit-policy.json", AUDIT_POLICY)?;
    }
    let admin = pki.client("lab-admin", Some("system:masters"))?;
    write_json(&layout.kubeconfig(&plan.name), &kubeconfig(plan, pki, "lab-admin", &admin))?;
    machine.configure(&Config {
        hostname: name.clone(),
        group: (layout.name().to_string(), name.clone()),
        netns: layout.netns(&name),
        shared: shared.to_vec(),
        bin: layout.bin(),
        sysctls: Vec::new(),
        setup: Vec::new(),
        units: units(plan, audit),
    })?;
    Ok(machine)
}

/// A client with the administrator's rights.
pub(crate) fn admin(layout: &Layout, plan: &ClusterPlan) -> anyhow::Result<ApiClient> {
    let config = crate::machine::read_json(&layout.kubeconfig(&plan.name))?;
    ApiClient::from_kubeconfig(&config).with_context(|| format!("cannot use the kubeconfig of {}", plan.name))
}

/// A kubeconfig of a user of a cluster.
pub(crate) fn kubeconfig(
    plan: &ClusterPlan,
    pki: &ClusterPki,
    user: &str,
    identity: &Identity,
) -> serde_json::Value {
    kubeconfig::render(plan.name.as_str(), &server(plan), &pki.ca().certificate, user, identity)
}

fn write_keys(machine: &Machine, plan: &ClusterPlan, pki: &ClusterPki) -> anyhow::Result<()> {
    let identities = [
        ("ca", pki.ca().clone()),
        ("front-proxy-ca", pki.front_proxy_ca().clone()),
        ("apiserver", pki.api_server(plan)?),
        ("apiserver-kubelet-client", pki.client("kube-apiserver-kubelet-client", Some("system:masters"))?),
        ("front-proxy-client", pki.front_proxy_client()?),
        ("service-accounts", pki.service_accounts()),
    ];
    for (name, identity) in identities {
        machine.write_etc(&format!("{PKI}/{name}.crt"), &identity.certificate)?;
        machine.write_etc(&format!("{PKI}/{name}.key"), &identity.key)?;
    }
    Ok(())
}

fn units(plan: &ClusterPlan, audit: bool) -> Vec<Unit> {
    let unit = |name: &str, flags: Vec<String>, after: Option<Condition>| Unit {
        name: name.to_owned(),
        command: std::iter::once(name.to_owned()).chain(flags).collect(),
        after,
        user: Some(plan.user),
    };
    vec![
        unit("etcd", etcd(), None),
        unit("kube-apiserver", api_server(plan, audit), Some(Condition::Port(ETCD_PORT))),
        unit("kube-controller-manager", controller_manager(plan), Some(Condition::Port(API_PORT))),
        unit("kube-scheduler", scheduler(), Some(Condition::Port(API_PORT))),
    ]
}

fn etcd() -> Vec<String> {
    vec![
        "--name=etcd".into(),
        format!("--data-dir={ETCD_DATA}"),
        format!("--listen-client-urls=http://127.0.0.1:{ETCD_PORT}"),
        format!("--advertise-client-urls=http://127.0.0.1:{ETCD_PORT}"),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-cluster=etcd=http://127.0.0.1:2380".into(),
        // A lab does not survive its host, and fsync of several etcds on one disk is most of what they would do.
        "--unsafe-no-fsync".into(),
        // The only member wins every election: how long it waits first only delays the start.
        "--heartbeat-interval=50".into(),
        "--election-timeout=250".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server(plan: &ClusterPlan, audit: bool) -> Vec<String> {
    let pki = |file: &str| format!("/etc/{PKI}/{file}");
    let mut flags = vec![
        format!("--advertise-address={}", plan.control_plane[0]),
        // Its default means IPv4.
        format!("--bind-address={}", if plan.lan_v6.is_some() { "::" } else { "0.0.0.0" }),
        format!("--secure-port={API_PORT}"),
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--service-cluster-ip-range={}", list(&plan.services)),
        "--allow-privileged=true".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP,Hostname".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", pki("service-accounts.crt")),
        format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
        // There is no kube-proxy on the control plane: webhooks and aggregated APIs are reached by pod address.
        "--enable-aggregator-routing=true".into(),
        format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
    ];
    if audit {
        flags.push("--audit-policy-file=/etc/kubernetes/audit-policy.json".into());
        flags.push(format!("--audit-log-path={AUDIT_LOG}"));
        // In megabytes, more than there will be: whoever counts requests must find them all in one file.
        flags.push("--audit-log-maxsize=1000000".into());
    }
    flags
}

fn controller_manager(plan: &ClusterPlan) -> Vec<String> {
    let pki = |file: &str| format!("/etc/{PKI}/{file}");
    let mut flags: Vec<String> = vec![
        "--kubeconfig=/etc/kubernetes/kube-controller-manager.kubeconfig".into(),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--use-service-account-credentials=true".into(),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("service-accounts.key")),
        // Signs approved requests for client and kubelet serving certificates alike.
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        "--allocate-node-cidrs=true".into(),
        format!("--cluster-cidr={}", list(&plan.pods)),
        format!("--service-cluster-ip-range={}", list(&plan.services)),
        // The default of 20 requests per second would be what every burst of pods measures.
        "--kube-api-qps=100".into(),
        "--kube-api-burst=200".into(),
    ];
    // What a node takes of each range; where there is one, there is another flag for it.
    flags.extend(match plan.pods[..] {
        [IpNet::V4(_)] => vec!["--node-cidr-mask-size=24".into()],
        [IpNet::V6(_)] => vec!["--node-cidr-mask-size=64".into()],
        _ => vec!["--node-cidr-mask-size-ipv4=24".into(), "--node-cidr-mask-size-ipv6=64".into()],
    });
    flags
}

/// Ranges as flags take them.
pub(crate) fn list(ranges: &[IpNet]) -> String {
    ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",")
}

fn scheduler() -> Vec<String> {
    vec![
        "--kubeconfig=/etc/kubernetes/kube-scheduler.kubeconfig".into(),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        // As for the controller manager: the default is 50.
        "--kube-api-qps=1000".into(),
        "--kube-api-burst=2000".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::address::AddressPlan;
    use crate::plan::spec::{IpFamilies, LabSpec};

    #[test]
    fn only_the_api_server_listens_beyond_loopback() {
        let plan = AddressPlan::new(&LabSpec::alone("a", 1), 0).clusters.remove(0);
        for unit in units(&plan, false).iter().filter(|unit| unit.name != "kube-apiserver") {
            let listens =
                unit.command.iter().filter(|flag| flag.contains("bind-") || flag.contains("listen-"));
            assert!(listens.clone().count() > 0, "{}", unit.name);
            assert!(listens.clone().all(|flag| flag.contains("127.0.0.1")), "{}", unit.name);
        }
    }

    #[test]
    fn a_cluster_is_told_the_ranges_of_its_families() {
        for (ip_families, pods, services) in [
            (IpFamilies::Ipv4, "10.244.0.0/16", "10.96.0.0/16"),
            (IpFamilies::Ipv6, "fd00:10:244::/56", "fd00:10:96::/112"),
            (IpFamilies::Dual, "10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/16,fd00:10:96::/112"),
        ] {
            let spec = LabSpec { ip_families, ..LabSpec::alone("a", 1) };
            let plan = AddressPlan::new(&spec, 0).clusters.remove(0);
            let services = format!("--service-cluster-ip-range={services}");
            assert!(api_server(&plan, false).contains(&services));
            assert!(controller_manager(&plan).contains(&services));
            assert!(controller_manager(&plan).contains(&format!("--cluster-cidr={pods}")));
        }
    }

    #[test]
    fn the_audit_log_is_written_only_on_demand() {
        let spec = LabSpec { audit: true, ..LabSpec::alone("a", 1) };
        let plan = AddressPlan::new(&spec, 0).clusters.remove(0);
        let audited =
            |audit| api_server(&plan, audit).iter().any(|flag| flag.starts_with("--audit-log-path="));
        assert!(audited(true) && !audited(false));
    }
}
