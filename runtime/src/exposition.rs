//! The Prometheus text format (version 0.0.4), as far as metrics of other programs are passed on: which pod a sample is
//! about is read and rewritten, values are not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One line with a value. Values of labels are as they are in the text, escapes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Name of the metric.
    pub name: &'a str,
    /// Its labels, in their order.
    pub labels: Vec<(&'a str, &'a str)>,
    /// Value and, if there is one, time.
    pub rest: &'a str,
}

impl<'a> Sample<'a> {
    /// Reads a line; `None` if it is a comment, empty, or no sample.
    pub fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' ', '\t']).filter(|end| *end > 0)?;
        let (name, rest) = line.split_at(end);
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':') {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => parse_labels(rest)?,
            None => (Vec::new(), rest),
        };
        let rest = rest.trim();
        (!rest.is_empty()).then_some(Self { name, labels, rest })
    }

    /// Value of a label.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Writes the line; labels named in `changed` get these values instead.
    pub fn write(&self, out: &mut String, changed: &[(&str, &str)]) {
        out.push_str(self.name);
        for (index, (label, value)) in self.labels.iter().enumerate() {
            out.push(if index == 0 { '{' } else { ',' });
            let value = changed.iter().find(|(name, _)| name == label).map_or(*value, |(_, value)| *value);
            // Writing to a string does not fail.
            let _ = write!(out, "{label}=\"{value}\"");
        }
        if !self.labels.is_empty() {
            out.push('}');
        }
        out.push(' ');
        out.push_str(self.rest);
        out.push('\n');
    }
}

fn parse_labels(mut text: &str) -> Option<(Vec<(&str, &str)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once('=')?;
        let rest = rest.trim_start().strip_prefix('"')?;
        let end = end_of_value(rest)?;
        labels.push((name.trim(), &rest[..end]));
        text = &rest[end + 1..];
    }
}

/// Where the closing quote is.
fn end_of_value(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Samples gathered from several sources, with each family in one piece as the format demands.
#[derive(Debug, Default)]
pub struct Families {
    families: BTreeMap<String, Family>,
    length: usize,
}

#[derive(Debug, Default)]
struct Family {
    comments: String,
    samples: String,
}

impl Families {
    /// Adds a sample to the family that `comments` (its `HELP` and `TYPE` lines) introduce.
    pub fn add(&mut self, comments: &Comments, sample: &Sample<'_>, changed: &[(&str, &str)]) {
        let named = comments.introduces(sample.name);
        let name = if named { comments.family.as_str() } else { sample.name };
        let family = match self.families.get_mut(name) {
            Some(family) => family,
            None => {
                let family = self.families.entry(name.to_owned()).or_default();
                if named {
                    family.comments.clone_from(&comments.text);
                    self.length += family.comments.len();
                }
                family
            }
        };
        let before = family.samples.len();
        sample.write(&mut family.samples, changed);
        self.length += family.samples.len() - before;
    }

    /// Takes over the samples of another source.
    pub fn append(&mut self, other: Families) {
        for (name, more) in other.families {
            let family = self.families.entry(name).or_default();
            if family.comments.is_empty() {
                self.length += more.comments.len();
                family.comments = more.comments;
            }
            self.length += more.samples.len();
            family.samples.push_str(&more.samples);
        }
    }

    /// Length of the text.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// The text.
    pub fn into_text(self) -> String {
        let mut text = String::with_capacity(self.length);
        for family in self.families.into_values() {
            text.push_str(&family.comments);
            text.push_str(&family.samples);
        }
        text
    }
}

/// The comments that were read last: those of one family.
#[derive(Debug, Default)]
pub struct Comments {
    family: String,
    text: String,
}

impl Comments {
    /// Reads a line if it is a `HELP` or a `TYPE`.
    pub fn learn(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        if let (Some("#"), Some("HELP" | "TYPE"), Some(name)) = (words.next(), words.next(), words.next()) {
            if name != self.family {
                name.clone_into(&mut self.family);
                self.text.clear();
            }
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// Histograms and summaries have samples named after their family with a suffix.
    fn introduces(&self, name: &str) -> bool {
        let suffix = name.strip_prefix(self.family.as_str());
        !self.family.is_empty()
            && suffix.is_some_and(|suffix| {
                ["", "_bucket", "_sum", "_count", "_total", "_created"].contains(&suffix)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"m_total{a="1",path="C:\\\"x\",{}",pod="web-0"} 1.5e3 1700000000000"#;

    #[test]
    fn labels_are_read_with_their_escapes() {
        let sample = Sample::parse(LINE).unwrap();
        assert_eq!(sample.name, "m_total");
        assert_eq!(sample.label("path"), Some(r#"C:\\\"x\",{}"#));
        assert_eq!((sample.label("pod"), sample.label("none")), (Some("web-0"), None));
        assert_eq!(sample.rest, "1.5e3 1700000000000");
    }

    #[test]
    fn a_sample_is_written_as_it_was_but_for_what_changes() {
        let mut out = String::new();
        Sample::parse(LINE).unwrap().write(&mut out, &[("pod", "web-1"), ("other", "x")]);
        assert_eq!(out, format!("{}\n", LINE.replace("web-0", "web-1")));
        out.clear();
        Sample::parse("up 1").unwrap().write(&mut out, &[]);
        assert_eq!(out, "up 1\n");
    }

    #[test]
    fn other_lines_are_no_samples() {
        for line in
            ["", "# TYPE m counter", "m", "m{a=\"1\"", "m{a=1} 2", "m{a=\"1\\\"} 2", "{a=\"1\"} 2", "m{} "]
        {
            assert_eq!(Sample::parse(line), None, "{line}");
        }
    }

    #[test]
    fn families_of_several_sources_are_in_one_piece() {
        let mut families = Families::default();
        for node in ["x", "y"] {
            let mut comments = Comments::default();
            let text = format!(
                "# HELP h a histogram\n# TYPE h histogram\nh_bucket{{n=\"{node}\"}} 1\nh_sum{{n=\"{node}\"}} 2\n# TYPE i gauge\ni{{n=\"{node}\"}} 3\nplain 4\n"
            );
            for line in text.lines() {
                comments.learn(line);
                if let Some(sample) = Sample::parse(line) {
                    families.add(&comments, &sample, &[]);
                }
            }
        }
        let mut more = Families::default();
        more.add(&Comments::default(), &Sample::parse("i{n=\"z\"} 5").unwrap(), &[]);
        families.append(more);
        let length = families.len();
        let text = families.into_text();
        assert_eq!(text.len(), length);
        assert_eq!(
            text,
            "# HELP h a histogram\n# TYPE h histogram\nh_bucket{n=\"x\"} 1\nh_sum{n=\"x\"} 2\nh_bucket{n=\"y\"} 1\n\
             h_sum{n=\"y\"} 2\n# TYPE i gauge\ni{n=\"x\"} 3\ni{n=\"y\"} 3\ni{n=\"z\"} 5\nplain 4\nplain 4\n"
        );
    }
}
