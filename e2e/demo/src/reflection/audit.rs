//! How often whom asked an API server for what: from its audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// Service accounts of this namespace are Liquid's.
const OWN: &str = "system:serviceaccount:liquid-system:";

/// Requests by client, and by what each asked for.
pub(crate) type Requests = BTreeMap<String, BTreeMap<String, u64>>;

/// The audit log of an API server, read from some point on.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    /// Where what is counted next begins.
    from: u64,
}

/// What is read of an entry.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

impl Audit {
    /// The log at `path`, from now on.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let mut audit = Self { path: path.to_owned(), from: 0 };
        audit.skip()?;
        Ok(audit)
    }

    /// Counts from now on.
    pub(crate) fn skip(&mut self) -> anyhow::Result<()> {
        let of = || format!("no audit log {}", self.path.display());
        self.from = std::fs::metadata(&self.path).with_context(of)?.len();
        Ok(())
    }

    /// What was asked for since the last call, or since [`Audit::skip`].
    pub(crate) fn count(&mut self) -> anyhow::Result<Requests> {
        let mut file =
            File::open(&self.path).with_context(|| format!("no audit log {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut requests = Requests::new();
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            // Half a line is still being written.
            if line.last() != Some(&b'\n') {
                return Ok(requests);
            }
            self.from += u64::try_from(length)?;
            let entry: Entry = serde_json::from_slice(&line).context("the audit log is not JSON")?;
            if let Some(what) = entry.counts() {
                *requests.entry(entry.user.username).or_default().entry(what).or_default() += 1;
            }
        }
    }
}

impl Entry {
    /// What it is counted as. A watch has an entry when it begins and one when it ends.
    fn counts(&self) -> Option<String> {
        let last = if self.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if self.stage != last {
            return None;
        }
        let object = self.object_ref.as_ref();
        Some(match object {
            Some(object) if object.subresource.is_empty() => format!("{} {}", self.verb, object.resource),
            Some(object) => format!("{} {}/{}", self.verb, object.resource, object.subresource),
            None => self.verb.clone(),
        })
    }
}

/// Requests of Liquid.
pub(crate) fn own(requests: &Requests) -> Requests {
    let own = requests.iter().filter_map(|(user, asked)| Some((user.strip_prefix(OWN)?, asked)));
    own.map(|(user, asked)| (user.to_owned(), asked.clone())).collect()
}

/// All of them.
pub(crate) fn total(requests: &Requests) -> u64 {
    requests.values().flat_map(BTreeMap::values).sum()
}

/// Those that change something, of the given resources.
pub(crate) fn writes(requests: &Requests, resources: &[&str]) -> u64 {
    let of = |asked: &str| {
        let (verb, what) = asked.split_once(' ').unwrap_or_default();
        let resource = what.split('/').next().unwrap_or_default();
        !["get", "list", "watch"].contains(&verb) && resources.contains(&resource)
    };
    requests.values().flatten().filter(|(asked, _)| of(asked)).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn entry(stage: &str, verb: &str, user: &str, subresource: &str) -> String {
        format!(
            r#"{{"stage":"{stage}","verb":"{verb}","user":{{"username":"{user}"}},"objectRef":{{"resource":"pods","subresource":"{subresource}"}}}}"#
        )
    }

    #[test]
    fn every_request_is_counted_once_and_nothing_before_the_beginning() {
        let path = std::env::temp_dir().join(format!("liquid-audit-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let liquid = format!("{OWN}liquid-kubelet");
        writeln!(file, "{}", entry("ResponseComplete", "get", &liquid, "")).unwrap();
        let mut audit = Audit::new(&path).unwrap();
        writeln!(file, "{}", entry("ResponseStarted", "watch", &liquid, "")).unwrap();
        writeln!(file, "{}", entry("ResponseComplete", "watch", &liquid, "")).unwrap();
        writeln!(file, "{}", entry("ResponseComplete", "patch", &liquid, "status")).unwrap();
        writeln!(file, "{}", entry("ResponseComplete", "create", "lab-admin", "")).unwrap();
        write!(file, "{{\"stage\"").unwrap();
        let own = own(&audit.count().unwrap());
        assert_eq!((total(&own), writes(&own, &["pods"]), writes(&own, &["nodes"])), (2, 1, 0));
        assert_eq!(own["liquid-kubelet"]["patch pods/status"], 1);
        drop(std::fs::remove_file(&path));
    }
}
