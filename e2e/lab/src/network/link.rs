//! The wire between two clusters: counting what crosses it, and cutting it.
//!
//! All of it is one nftables table in the router's namespace. Every packet from cluster a to cluster b runs through
//! chain `cut-a-b` (drops, empty at first) and then through counter `a-b`: what is counted was delivered. What a firewall
//! stops goes through counter `stopped-a-b`.

use std::fmt;

use anyhow::Context;
use serde_json::Value;

use crate::host::command;
use crate::plan::layout::{Layout, lan_bridge};
use crate::plan::spec::ClusterName;

const TABLE: &str = "inet liquid_lab";

/// The wire between two clusters of a lab.
#[derive(Clone, Debug)]
pub struct Link {
    router: String,
    a: ClusterName,
    b: ClusterName,
}

/// Which packets a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of them.
    All,
    /// TCP to this port, and what comes back from it.
    Tcp(u16),
    /// UDP to this port, and what comes back from it.
    Udp(u16),
    /// IPv4.
    Ipv4,
}

/// The one service that a firewall between two clusters lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Whether it is the first cluster of the link that offers it, and not the second.
    pub at_first: bool,
    /// Its UDP port.
    pub port: u16,
}

/// Which way a cut applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first cluster to the second.
    Forth,
    /// From the second cluster to the first.
    Back,
    /// Both.
    Both,
}

/// What was delivered since the lab came up; bytes count from the IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the first cluster to the second.
    pub bytes_forth: u64,
    /// From the second cluster to the first.
    pub bytes_back: u64,
    /// From the first cluster to the second.
    pub packets_forth: u64,
    /// From the second cluster to the first.
    pub packets_back: u64,
}

impl Link {
    pub(crate) fn new(layout: &Layout, a: &ClusterName, b: &ClusterName) -> Self {
        Self { router: layout.router_netns(), a: a.clone(), b: b.clone() }
    }

    /// Drops the packets from now on, without a word to the sender, as a broken wire does. Cuts add up.
    ///
    /// # Errors
    /// If the lab is not up.
    pub fn cut(&self, what: Cut, direction: Direction) -> anyhow::Result<()> {
        let mut script = String::new();
        for (from, to) in self.ways(direction) {
            for matching in what.matches() {
                // Ahead of what a firewall lets through.
                script.push_str(&format!("insert rule {TABLE} cut-{from}-{to} {matching}drop\n"));
            }
        }
        self.nft(&script).map(drop)
    }

    /// Lets nothing through from now on but UDP to one port of one cluster, what comes back from it, and errors about either
    /// (ICMP "destination unreachable", and "packet too big" of IPv6), as a firewall does. What it stops is counted from zero.
    ///
    /// # Errors
    /// If the lab is not up.
    pub fn only(&self, opening: Opening) -> anyhow::Result<()> {
        self.nft(&self.firewall(opening)).map(drop)
    }

    fn firewall(&self, opening: Opening) -> String {
        let (caller, called) = if opening.at_first { (&self.b, &self.a) } else { (&self.a, &self.b) };
        let mut script = String::new();
        for (from, to, end) in [(caller, called, "dport"), (called, caller, "sport")] {
            let stopped = format!("stopped-{from}-{to}");
            script.push_str(&format!(
                "flush chain {TABLE} cut-{from}-{to}\n\
                 reset counter {TABLE} {stopped}\n\
                 add rule {TABLE} cut-{from}-{to} udp {end} {} return\n\
                 add rule {TABLE} cut-{from}-{to} icmp type destination-unreachable return\n\
                 add rule {TABLE} cut-{from}-{to} icmpv6 type {{ destination-unreachable, packet-too-big }} return\n\
                 add rule {TABLE} cut-{from}-{to} counter name {stopped} drop\n",
                opening.port
            ));
        }
        script
    }

    /// Packets that a firewall has stopped, from the first cluster and from the second.
    ///
    /// # Errors
    /// If the lab is not up.
    pub fn stopped(&self) -> anyhow::Result<(u64, u64)> {
        let counters = self.counters()?;
        let packets = |from, to| read(&counters, &format!("stopped-{from}-{to}")).map(|(_, packets)| packets);
        Ok((packets(&self.a, &self.b)?, packets(&self.b, &self.a)?))
    }

    /// Undoes every cut of this link, and its firewall.
    ///
    /// # Errors
    /// If the lab is not up.
    pub fn restore(&self) -> anyhow::Result<()> {
        let ways = self.ways(Direction::Both);
        let script: String =
            ways.iter().map(|(from, to)| format!("flush chain {TABLE} cut-{from}-{to}\n")).collect();
        self.nft(&script).map(drop)
    }

    /// What was delivered so far.
    ///
    /// # Errors
    /// If the lab is not up.
    pub fn traffic(&self) -> anyhow::Result<Traffic> {
        let counters = self.counters()?;
        let (bytes_forth, packets_forth) = read(&counters, &format!("{}-{}", self.a, self.b))?;
        let (bytes_back, packets_back) = read(&counters, &format!("{}-{}", self.b, self.a))?;
        Ok(Traffic { bytes_forth, bytes_back, packets_forth, packets_back })
    }

    fn counters(&self) -> anyhow::Result<Value> {
        let text = command::run(
            "ip",
            [
                "netns",
                "exec",
                &self.router,
                "nft",
                "--json",
                "list",
                "counters",
                "table",
                "inet",
                "liquid_lab",
            ],
        )?;
        serde_json::from_str(&text).context("nft's counters are not JSON")
    }

    fn ways(&self, direction: Direction) -> Vec<(&ClusterName, &ClusterName)> {
        let (forth, back) = ((&self.a, &self.b), (&self.b, &self.a));
        match direction {
            Direction::Forth => vec![forth],
            Direction::Back => vec![back],
            Direction::Both => vec![forth, back],
        }
    }

    fn nft(&self, script: &str) -> anyhow::Result<String> {
        command::feed("ip", ["netns", "exec", &self.router, "nft", "-f", "-"], script.as_bytes())
            .with_context(|| format!("cannot change the link of {} and {}", self.a, self.b))
    }
}

impl Cut {
    fn matches(self) -> Vec<String> {
        match self {
            Self::All => vec![String::new()],
            Self::Tcp(port) => vec![format!("tcp dport {port} "), format!("tcp sport {port} ")],
            Self::Udp(port) => vec![format!("udp dport {port} "), format!("udp sport {port} ")],
            Self::Ipv4 => vec!["meta nfproto ipv4 ".to_owned()],
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B forth, {} B back", self.bytes_forth, self.bytes_back)
    }
}

/// Makes the table for all pairs of clusters in the router.
pub(crate) fn create(layout: &Layout, clusters: &[&ClusterName]) -> anyhow::Result<()> {
    let script = table(clusters);
    command::feed("ip", ["netns", "exec", &layout.router_netns(), "nft", "-f", "-"], script.as_bytes())
        .context("cannot make the router's packet filter")?;
    Ok(())
}

fn table(clusters: &[&ClusterName]) -> String {
    let pairs = || {
        clusters
            .iter()
            .flat_map(|from| clusters.iter().filter(move |to| *to != from).map(move |to| (*from, *to)))
    };
    let mut text = format!("table {TABLE} {{\n");
    for (from, to) in pairs() {
        text.push_str(&format!("  counter {from}-{to} {{ }}\n  counter stopped-{from}-{to} {{ }}\n"));
        text.push_str(&format!("  chain cut-{from}-{to} {{ }}\n"));
    }
    text.push_str("  chain forward {\n    type filter hook forward priority 0; policy accept;\n");
    for (from, to) in pairs() {
        let way = format!("iifname {} oifname {}", lan_bridge(from), lan_bridge(to));
        text.push_str(&format!("    {way} jump cut-{from}-{to}\n    {way} counter name {from}-{to}\n"));
    }
    text.push_str("  }\n}\n");
    text
}

/// Bytes and packets of a counter.
fn read(counters: &Value, name: &str) -> anyhow::Result<(u64, u64)> {
    let all = counters["nftables"].as_array();
    let counter = all.into_iter().flatten().map(|entry| &entry["counter"]).find(|c| c["name"] == name);
    let counter = counter.with_context(|| format!("the router does not count {name}"))?;
    Ok((counter["bytes"].as_u64().unwrap_or_default(), counter["packets"].as_u64().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    #[test]
    fn every_ordered_pair_has_a_cut_before_its_counter() {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let text = table(&[&a, &b, &c]);
        assert_eq!(text.matches("jump cut-").count(), 6);
        let cut = text.find("jump cut-b-c").unwrap();
        assert!(cut < text.find("counter name b-c").unwrap());
        assert!(!text.contains("cut-a-a"));
    }

    #[test]
    fn counters_are_read_by_direction() {
        let listed = json!({ "nftables": [
            { "metainfo": {} },
            { "counter": { "name": "a-b", "packets": 2, "bytes": 120 } },
            { "counter": { "name": "b-a", "packets": 1, "bytes": 60 } },
        ]});
        assert_eq!(read(&listed, "a-b").unwrap(), (120, 2));
        assert_eq!(read(&listed, "b-a").unwrap(), (60, 1));
        assert!(read(&listed, "a-c").is_err());
    }

    #[test]
    fn a_firewall_lets_one_service_of_one_cluster_through() {
        let link = Link { router: "r".to_owned(), a: name("a"), b: name("b") };
        let of_second = link.firewall(Opening { at_first: false, port: 31820 });
        assert!(of_second.contains("cut-a-b udp dport 31820 return"));
        assert!(of_second.contains("cut-b-a udp sport 31820 return"));
        assert_eq!(of_second.matches(" drop").count(), 2);
        let of_first = link.firewall(Opening { at_first: true, port: 31820 });
        assert!(of_first.contains("cut-b-a udp dport 31820 return"));
    }

    #[test]
    fn a_port_is_cut_both_as_destination_and_as_source() {
        assert_eq!(Cut::Udp(51820).matches(), ["udp dport 51820 ", "udp sport 51820 "]);
        assert_eq!(Cut::All.matches(), [""]);
    }
}
