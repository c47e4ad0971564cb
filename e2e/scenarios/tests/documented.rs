//! What is tried on real clusters is in the documentation, and nothing else is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What a scenario begins with. In two parts, for this file is read, too.
const MARK: &str = concat!("#[tokio", "::test");
const DOCUMENT: &str = include_str!("../../../docs/scenarios.md");

/// Names of the scenarios in the files below a directory.
fn scenarios(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scenarios(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let tests = text.split(MARK).skip(1);
        found.extend(tests.map(|test| {
            let (_, name) = test.split_once("async fn ").unwrap();
            name.split('(').next().unwrap().to_owned()
        }));
    }
}

#[test]
fn every_scenario_is_documented() {
    let mut written = BTreeSet::new();
    scenarios(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut written);
    let is_name =
        |text: &&str| text.contains('_') && text.chars().all(|it| matches!(it, 'a'..='z' | '0'..='9' | '_'));
    let names = DOCUMENT.split('`').skip(1).step_by(2).filter(is_name);
    let documented: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(written.len() > 50, "{written:?}");
    assert_eq!(documented, written);
}
