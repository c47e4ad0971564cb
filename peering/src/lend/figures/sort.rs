//! From the answer of one kubelet to what each consumer may see of it, by the names at home. Pure.

use super::{Answers, Owner};
use crate::lend::shadows::{Placed, Roster};
use bytes::Bytes;
use liquid_runtime::exposition::{Comments, Families, Sample};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What of a kubelet is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Processor time and memory of the summary.
    CpuAndMemory,
    /// The whole summary.
    Summary,
    /// Metrics of processor time and memory; their times are exact, those of the summary are whole seconds.
    Resource,
    /// cAdvisor's metrics.
    Cadvisor,
    /// How probes have ended.
    Probes,
}

impl Source {
    pub(super) const ALL: [Self; 5] =
        [Self::CpuAndMemory, Self::Summary, Self::Resource, Self::Cadvisor, Self::Probes];

    /// Path and query at a kubelet.
    pub(super) fn path(self) -> &'static str {
        match self {
            Source::CpuAndMemory => "stats/summary?only_cpu_and_memory=true",
            Source::Summary => "stats/summary",
            Source::Resource => "metrics/resource",
            Source::Cadvisor => "metrics/cadvisor",
            Source::Probes => "metrics/probes",
        }
    }

    /// Media type of what a consumer is sent.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Source::CpuAndMemory | Source::Summary => "application/x-ndjson",
            Source::Resource | Source::Cadvisor | Source::Probes => liquid_runtime::exposition::CONTENT_TYPE,
        }
    }
}

/// What one or more kubelets say, by owner.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    lines: BTreeMap<Owner, Vec<u8>>,
    families: BTreeMap<Owner, Families>,
}

impl Pieces {
    /// Takes over what another node says.
    pub(super) fn append(&mut self, other: Pieces) {
        for (owner, lines) in other.lines {
            self.lines.entry(owner).or_default().extend(lines);
        }
        for (owner, families) in other.families {
            self.families.entry(owner).or_default().append(families);
        }
    }

    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.lines.values().map(Vec::len).sum::<usize>()
            + self.families.values().map(Families::len).sum::<usize>()
    }

    /// What is sent.
    pub(super) fn into_answers(self) -> Answers {
        let lines = self.lines.into_iter().map(|(owner, lines)| (owner, Bytes::from(lines)));
        let texts = self.families.into_iter().map(|(owner, text)| (owner, Bytes::from(text.into_text())));
        lines.chain(texts).collect()
    }
}

/// Sorts the answer of a kubelet.
pub(super) fn pieces(source: Source, text: &[u8], roster: &Roster) -> Result<Pieces, String> {
    match source {
        Source::CpuAndMemory | Source::Summary => stats(text, roster),
        Source::Resource | Source::Cadvisor | Source::Probes => {
            Ok(metrics(std::str::from_utf8(text).map_err(|error| error.to_string())?, roster))
        }
    }
}

#[derive(Deserialize)]
struct Summary<'a> {
    #[serde(borrow, default)]
    pods: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    pod_ref: PodRef,
}

#[derive(Deserialize)]
struct PodRef {
    namespace: String,
    name: String,
    uid: String,
}

fn stats(text: &[u8], roster: &Roster) -> Result<Pieces, String> {
    let summary: Summary<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let mut pieces = Pieces::default();
    for pod in summary.pods {
        let Ok(Named { pod_ref }) = serde_json::from_str(pod.get()) else { continue };
        let placed = roster.find(&pod_ref.namespace, &pod_ref.name);
        // One of the same name that has just taken another's place has no figures yet.
        let Some(placed) = placed.filter(|placed| placed.object.as_str() == pod_ref.uid) else { continue };
        let Ok(mut stats) = serde_json::from_str::<Value>(pod.get()) else { continue };
        rename(&mut stats, placed);
        let lines = pieces.lines.entry(placed.owner()).or_default();
        lines.extend_from_slice(stats.to_string().as_bytes());
        lines.push(b'\n');
    }
    Ok(pieces)
}

fn rename(stats: &mut Value, placed: &Placed) {
    let namespace = &*placed.home.namespace;
    stats["podRef"] =
        json!({ "namespace": namespace, "name": &*placed.home.name, "uid": placed.uid.as_str() });
    let volumes = stats.get_mut("volume").and_then(Value::as_array_mut).into_iter().flatten();
    for claim in volumes.filter_map(|volume| volume.get_mut("pvcRef")) {
        claim["namespace"] = json!(namespace);
    }
}

fn metrics(text: &str, roster: &Roster) -> Pieces {
    let mut pieces = Pieces::default();
    let mut comments = Comments::default();
    for line in text.lines() {
        let Some(sample) = Sample::parse(line) else {
            comments.learn(line);
            continue;
        };
        // Machines and system services have no pod; they are none of a consumer's business.
        let (Some(namespace), Some(pod)) = (sample.label("namespace"), sample.label("pod")) else { continue };
        let Some(placed) = roster.find(namespace, pod) else { continue };
        let changed = [
            ("namespace", &*placed.home.namespace),
            ("pod", &*placed.home.name),
            ("pod_uid", placed.uid.as_str()),
        ];
        pieces.families.entry(placed.owner()).or_default().add(&comments, &sample, &changed);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_reflection::{Key, Uid};
    use std::sync::Arc;

    const CLUSTER: &str = "3f2c0a44-8c1e-4a8e-9d55-0123456789ab";

    fn roster() -> Roster {
        let mut roster = Roster::default();
        for (namespace, node, object) in [("shop-milan", "liquid-a", "p1"), ("bar-milan", "liquid-b", "p2")] {
            roster.insert(
                namespace.into(),
                "web-0".into(),
                Placed {
                    cluster: CLUSTER.parse().unwrap(),
                    virtual_node: node.into(),
                    home: Key::new(namespace.trim_end_matches("-milan"), "web-0"),
                    uid: Uid::from(format!("home-{object}").as_str()),
                    object: Uid::from(object),
                },
                "n1".into(),
            );
        }
        roster
    }

    fn answer<'a>(answers: &'a Answers, node: &str) -> &'a str {
        let owner = (CLUSTER.parse().unwrap(), Arc::from(node));
        answers.get(&owner).map_or("", |answer| std::str::from_utf8(answer).unwrap())
    }

    #[test]
    fn each_virtual_node_gets_its_own_pods_under_their_names_at_home() {
        let pod = |namespace: &str, uid: &str| {
            json!({
                "podRef": {"namespace": namespace, "name": "web-0", "uid": uid},
                "containers": [{"name": "c", "cpu": {"usageCoreNanoSeconds": 18_446_744_073_709_551_615_u64}}],
                "volume": [{"name": "v", "pvcRef": {"namespace": namespace, "name": "data"}}],
                "newField": 1,
            })
        };
        let summary = json!({
            "node": {"nodeName": "n1", "cpu": {"usageNanoCores": 7}},
            "pods": [
                pod("shop-milan", "p1"), pod("bar-milan", "p2"), pod("kube-system", "p3"), pod("shop-milan", "old"),
            ],
        });
        let text = summary.to_string();
        let mut all = pieces(Source::Summary, text.as_bytes(), &roster()).unwrap();
        let another = pieces(
            Source::Summary,
            json!({"pods": [pod("shop-milan", "p1")]}).to_string().as_bytes(),
            &roster(),
        );
        all.append(another.unwrap());
        let answers = all.into_answers();
        assert_eq!(answers.len(), 2);
        let lines: Vec<Value> =
            answer(&answers, "liquid-a").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["podRef"], json!({"namespace": "shop", "name": "web-0", "uid": "home-p1"}));
        assert_eq!(lines[0]["volume"][0]["pvcRef"], json!({"namespace": "shop", "name": "data"}));
        assert_eq!(lines[0]["newField"], 1, "what newer kubelets say is passed on");
        assert_eq!(lines[0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], json!(u64::MAX));
        assert!(!answer(&answers, "liquid-b").contains("shop"));
    }

    #[test]
    fn metrics_of_the_node_and_of_other_pods_stay_here() {
        let text = "# TYPE machine_cpu_cores gauge\nmachine_cpu_cores 8\n\
            # TYPE cpu counter\ncpu{container=\"c\",namespace=\"shop-milan\",pod=\"web-0\",pod_uid=\"p1\"} 1 17\n\
            cpu{container=\"c\",namespace=\"kube-system\",pod=\"web-0\"} 2 17\ncpu{id=\"/\",namespace=\"\",pod=\"\"} 3\n";
        let answers = pieces(Source::Cadvisor, text.as_bytes(), &roster()).unwrap().into_answers();
        assert_eq!(
            answer(&answers, "liquid-a"),
            "# TYPE cpu counter\ncpu{container=\"c\",namespace=\"shop\",pod=\"web-0\",pod_uid=\"home-p1\"} 1 17\n"
        );
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn an_answer_that_is_no_summary_is_an_error() {
        assert!(pieces(Source::Summary, b"busy", &roster()).is_err());
        assert!(pieces(Source::Probes, b"\xff", &roster()).is_err());
    }
}
