//! A cluster of two nodes, with a pod and a gateway pod on each, and a peer behind the gateways.
//!
//! ```text
//!            lan 192.0.2.0/24
//!        node 1 (.11)      node 2 (.12)      10.244.1.0/24, 10.244.2.0/24
//!        |         |       |          |
//!      pod .7  gateway .5  gateway .5  pod .7
//!                   |         |
//!                   '-- peer -'              seen as 10.201.0.0/16
//! ```
//! Pods are attached as the CNI plugin `ptp` does it. Gateways have a device `liquid-wg` that leads to the peer: packets go in
//! and come out of it as they do with the real one.

use super::api::{Cluster, DAEMON_SETS, NODES, PEERS, PODS, Server};
use super::netns::{Namespace, Process, eventually};
use serde_json::{Value, json};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const PEER: &str = "10.201.0.9";
pub(crate) const PEER6: &str = "fd00:201::9";
pub(crate) const NODE_PORT: u16 = 30_080;
pub(crate) const ECHO: u16 = 7000;

/// How the pod network and kube-proxy write NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    Nftables,
    Iptables,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) lan: Namespace,
    pub(crate) peer: Namespace,
    pub(crate) nodes: [Namespace; 2],
    pub(crate) pods: [Namespace; 2],
    pub(crate) gateways: [Namespace; 2],
    pub(crate) directory: tempfile::TempDir,
    /// Nothing in the cluster has an address of IPv4, as far as it says.
    v6_only: bool,
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

impl World {
    pub(crate) fn new(nat: Nat) -> Self {
        Self::of(nat, false)
    }

    /// A cluster with IPv6 alone.
    pub(crate) fn v6_only() -> Self {
        Self::of(Nat::Nftables, true)
    }

    fn of(nat: Nat, v6_only: bool) -> Self {
        let prefix = format!("lf{}-{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let namespace = |name: &str| Namespace::new(format!("{prefix}-{name}"));
        let world = Self {
            cluster: Cluster::new(),
            lan: namespace("lan"),
            peer: namespace("peer"),
            nodes: [namespace("n1"), namespace("n2")],
            pods: [namespace("p1"), namespace("p2")],
            gateways: [namespace("g1"), namespace("g2")],
            directory: tempfile::tempdir().unwrap(),
            v6_only,
        };
        world.lan.sh("ip link add lan type bridge; ip addr add 192.0.2.1/24 dev lan; ip link set lan up");
        world.peer.sh(&format!("ip addr add {PEER}/32 dev lo; ip addr add {PEER6}/128 dev lo"));
        for at in [0, 1] {
            let number = at + 1;
            world.node(at, nat);
            world.attach(at, &world.pods[at], "pod", 7);
            world.attach(at, &world.gateways[at], "gw", 5);
            let (gateway, peer) = (&world.gateways[at], &world.peer);
            // As its first container does; for IPv4 nothing is needed.
            gateway.sh(&format!("{} forward-ipv6", binary().display()));
            gateway.sh(&format!("ip link add liquid-wg type veth peer name up{number} netns {}", peer.name));
            gateway.sh("ip link set liquid-wg address 02:00:00:00:00:01 up");
            // A real tunnel has no neighbours to ask for.
            gateway.sh(&format!("ip link set liquid-wg arp off; ip netns exec {} true", peer.name));
            peer.sh(&format!("ip link set up{number} address 02:00:00:00:00:01 up arp off"));
            for (key, value) in [("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")] {
                peer.sysctl(key, value);
            }
            peer.sysctl(&format!("ipv4/conf/up{number}/rp_filter"), "0");
        }
        if v6_only {
            // As on any machine: an address is good for something once it was looked whether others have it.
            for namespace in world.nodes.iter().chain(&world.gateways) {
                namespace.sysctl("ipv6/conf/default/accept_dad", "1");
            }
        }
        world.peer.sh("ip route add 10.244.0.0/16 nexthop dev up1 nexthop dev up2
             ip route add fd00:244::/32 dev up1");
        for (number, gateway) in [(1, "gateway-1"), (2, "gateway-2")] {
            world.set_gateway(number, gateway, "True", false);
        }
        world.cluster.set(DAEMON_SETS, "liquid-fabric", json!({"metadata": {"uid": "u"}}));
        world.set_peer();
        world
    }

    fn node(&self, at: usize, nat: Nat) {
        let (number, other) = (at + 1, 2 - at);
        let node = &self.nodes[at];
        node.sysctl("ipv6/conf/all/forwarding", "1");
        // Strict, as many distributions have it.
        for (key, value) in
            [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/default/rp_filter", "1")]
        {
            node.sysctl(key, value);
        }
        node.sh(&format!(
            "ip link add eth0 type veth peer name n{number} netns {}; ip addr add 192.0.2.1{number}/24 dev eth0
             ip link set eth0 up; ip route add default via 192.0.2.1
             ip route add 10.244.{other}.0/24 via 192.0.2.1{other}",
            self.lan.name
        ));
        self.lan.sh(&format!("ip link set n{number} master lan up"));
        node.sh(&format!(
            "ip addr add 2001:db8::1{number}/64 dev eth0
             ip route add fd00:244:0:{other}::/64 via 2001:db8::1{other}"
        ));
        // What leaves the pods' network gets the node's address, and a node port leads to the peer.
        node.sh(&match nat {
            Nat::Nftables => format!(
                "nft -f - <<'E'
                table ip6 kube {{
                  chain outgoing {{
                    type nat hook postrouting priority srcnat
                    ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade
                  }}
                }}
                table ip kube {{
                  chain outgoing {{
                    type nat hook postrouting priority srcnat
                    meta mark 0x4000 masquerade
                    ip saddr 10.244.{number}.0/24 ip daddr != 10.244.0.0/16 masquerade
                  }}
                  chain incoming {{
                    type nat hook prerouting priority dstnat
                    ip daddr 192.0.2.1{number} udp dport {NODE_PORT} meta mark set 0x4000 dnat to {PEER}:{ECHO}
                  }}
                }}
                \nE"
            ),
            Nat::Iptables => format!(
                "ip6tables -t nat -A POSTROUTING -s fd00:244::/32 ! -d fd00:244::/32 -j MASQUERADE
                 iptables -t nat -A PREROUTING -d 192.0.2.1{number} -p udp --dport {NODE_PORT} -j MARK --set-mark 0x4000
                 iptables -t nat -A PREROUTING -d 192.0.2.1{number} -p udp --dport {NODE_PORT} -j DNAT --to {PEER}:{ECHO}
                 iptables -t nat -A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE
                 iptables -t nat -A POSTROUTING -s 10.244.{number}.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"
            ),
        });
        self.set_node(number, "True");
    }

    /// What the cluster says of a node.
    pub(crate) fn set_node(&self, number: usize, ready: &str) {
        let cidrs = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
        let addresses = [format!("192.0.2.1{number}"), format!("2001:db8::1{number}")]
            .map(|address| json!({"type": "InternalIP", "address": address}));
        self.cluster.set(
            NODES,
            &format!("node-{number}"),
            json!({
                "metadata": {},
                "spec": {"podCIDRs": self.families(&cidrs)},
                "status": {
                    "addresses": self.families(&addresses),
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            }),
        );
    }

    /// Of something for each family, what there is.
    fn families<'a, T>(&self, both: &'a [T; 2]) -> &'a [T] {
        if self.v6_only { &both[1..] } else { both }
    }

    /// Attaches a pod to a node.
    fn attach(&self, at: usize, pod: &Namespace, device: &str, host: u8) {
        let number = at + 1;
        pod.sysctl("ipv4/conf/all/rp_filter", "1");
        pod.sysctl("ipv4/conf/default/rp_filter", "1");
        self.nodes[at].sh(&format!(
            "ip link add {device} type veth peer name eth0 netns {}; ip addr add 10.244.{number}.1/32 dev {device}
             ip link set {device} up; ip route add 10.244.{number}.{host} dev {device}
             ip addr add fd00:244:0:{number}::1/128 dev {device}; ip route add fd00:244:0:{number}::{host} dev {device}",
            pod.name
        ));
        pod.sh(&format!(
            "ip addr add 10.244.{number}.{host}/32 dev eth0; ip link set eth0 up
             ip route add 10.244.{number}.1 dev eth0; ip route add default via 10.244.{number}.1
             ip addr add fd00:244:0:{number}::{host}/64 dev eth0 noprefixroute; ip route add fd00:244:0:{number}::1 dev eth0
             ip route add default via fd00:244:0:{number}::1"
        ));
    }

    pub(crate) fn set_peer(&self) {
        self.set_access(&json!(null));
    }

    /// What the peer may reach.
    pub(crate) fn set_access(&self, access: &Value) {
        self.set_access_and_outside(access, &[]);
    }

    /// The same, and which hosts outside of the cluster it is offered.
    pub(crate) fn set_access_and_outside(&self, access: &Value, outside: &[&str]) {
        let cidrs = [
            json!({"real": "10.244.0.0/16", "seen": "10.201.0.0/16"}),
            json!({"real": "fd00:244::/32", "seen": "fd00:201::/32"}),
        ];
        let cidrs = self.families(&cidrs);
        // The API server keeps a null.
        let network = if access.is_null() { json!(null) } else { json!({"access": access}) };
        let status = json!({"network": {"podCIDRs": cidrs, "ourExternalCIDRs": outside}});
        let spec = json!({ "network": network });
        self.cluster.set(PEERS, "milan", json!({"metadata": {"uid": "u"}, "spec": spec, "status": status}));
    }

    pub(crate) fn set_gateway(&self, node: usize, name: &str, ready: &str, leaving: bool) {
        let address = |ip: String| json!({ "ip": ip });
        let addresses = [format!("10.244.{node}.5"), format!("fd00:244:0:{node}::5")].map(address);
        let hosts = [format!("192.0.2.1{node}"), format!("2001:db8::1{node}")].map(address);
        let mut pod = json!({
            "metadata": {"namespace": "liquid-system"},
            "status": {
                "phase": "Running", "podIPs": self.families(&addresses), "hostIPs": self.families(&hosts),
                "conditions": [{"type": "Ready", "status": ready}],
            }
        });
        if leaving {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        self.cluster.set(PODS, name, pod);
    }

    pub(crate) fn start_node(&self, at: usize) -> Running {
        let name = format!("node-{}", at + 1);
        self.start(&self.nodes[at], &name, &["node", "--node-name", &name])
    }

    pub(crate) fn start_gateway(&self, at: usize) -> Running {
        let (name, number) = (format!("gateway-{}", at + 1), at + 1);
        let addresses = [format!("10.244.{number}.5"), format!("fd00:244:0:{number}::5")];
        let addresses = self.families(&addresses).join(",");
        self.start(&self.gateways[at], &name, &["gateway", "--pod-name", &name, "--pod-ips", &addresses])
    }

    pub(crate) fn start_all(&self) -> Vec<Running> {
        let running =
            vec![self.start_node(0), self.start_node(1), self.start_gateway(0), self.start_gateway(1)];
        for one in &running {
            one.is_ready();
        }
        running
    }

    fn start(&self, namespace: &Namespace, name: &str, arguments: &[&str]) -> Running {
        let directory = self.directory.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let server = self.cluster.serve(namespace, &directory);
        let log = directory.join("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = namespace.command(binary());
        command.args(arguments).env("KUBECONFIG", &server.kubeconfig).env("LIQUID_LOG", "warn,liquid=debug");
        let process = Process::start(command.stdout(Stdio::null()).stderr(file));
        Running { process, server: Some(server), namespace: namespace.name.clone(), log }
    }

    /// Answers datagrams at the peer with the address they come from, while `function` runs.
    pub(crate) fn with_echo<T>(&self, function: impl FnOnce() -> T) -> T {
        echo_in(&self.peer, PEER, || echo_in(&self.peer, PEER6, function))
    }
}

/// Answers datagrams with the address they come from.
pub(crate) fn echo_in<T>(namespace: &Namespace, address: &str, function: impl FnOnce() -> T) -> T {
    use std::sync::atomic::AtomicBool;
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let server = namespace.inside(|| UdpSocket::bind((address, ECHO)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2000];
            while !done.load(Ordering::Relaxed) {
                if let Ok((_, from)) = server.recv_from(&mut buffer) {
                    drop(server.send_to(from.ip().to_string().as_bytes(), from));
                }
            }
        });
        let _done = Done(&done);
        function()
    })
}

/// The source under which a datagram arrives, if it is answered.
pub(crate) fn source_seen(from: &Namespace, to: &str, port: u16) -> Option<IpAddr> {
    from.inside(|| {
        let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // Connected: answers from elsewhere do not count.
        socket.connect((to, port)).ok()?;
        socket.send(b"who am I?").ok()?;
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).ok()?;
        Some(std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap())
    })
}

pub(crate) fn peer_sees(from: &Namespace) -> IpAddr {
    sees(from, PEER)
}

pub(crate) fn sees(from: &Namespace, to: &str) -> IpAddr {
    eventually(&format!("an answer of {to} to {}", from.name), || source_seen(from, to, ECHO))
}

/// `liquid-fabric`, running.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    server: Option<Server>,
    namespace: String,
    log: PathBuf,
}

impl Running {
    pub(crate) fn is_ready(&self) {
        let ready = eventually_ready(&self.namespace);
        assert!(ready, "{} is not ready: {}", self.namespace, self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Takes its API server away.
    pub(crate) fn isolate(&mut self) {
        self.server = None;
    }
}

fn eventually_ready(namespace: &str) -> bool {
    let deadline = std::time::Instant::now() + super::netns::DEADLINE;
    while std::time::Instant::now() < deadline {
        if get(namespace, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return true;
        }
        super::netns::pause(Duration::from_millis(20));
    }
    false
}

/// What the admin endpoint in a namespace answers, headers included.
pub(crate) fn get(namespace: &str, path: &str) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let namespace = std::mem::ManuallyDrop::new(Namespace { name: namespace.to_owned() });
    namespace.inside(|| {
        let address: SocketAddr = "127.0.0.1:9090".parse().unwrap();
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

pub(crate) fn binary() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_liquid-fabric")).to_owned()
}
