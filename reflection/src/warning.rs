//! Warnings about a pod (Kubernetes Events): why it does not start in the provider is of interest at home.

use serde::{Deserialize, Serialize};

/// Longest message: what an API server takes in an Event.
const MAX_MESSAGE: usize = 1024;
/// Longest of the other texts: a reason, a component, the path of a field.
const MAX_TEXT: usize = 128;

/// A warning, as it travels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warning {
    /// CamelCase, for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// How often it was given.
    pub count: u32,
    /// When it was given first and last (RFC 3339).
    pub first: String,
    /// See `first`.
    pub last: String,
    /// Which part of the pod it is about: the path of a container, say.
    pub field_path: Option<String>,
    /// Who gave it: a scheduler, a kubelet.
    pub component: String,
}

impl Warning {
    /// With texts no longer than an API server takes.
    #[must_use]
    pub fn bounded(self) -> Self {
        let cut = |text: String, most: usize| text.chars().take(most).collect::<String>();
        Self {
            reason: cut(self.reason, MAX_TEXT),
            message: cut(self.message, MAX_MESSAGE),
            count: self.count.clamp(1, i32::MAX.unsigned_abs()),
            first: cut(self.first, MAX_TEXT),
            last: cut(self.last, MAX_TEXT),
            field_path: self.field_path.map(|path| cut(path, MAX_TEXT)),
            component: cut(self.component, MAX_TEXT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_no_longer_than_an_api_server_takes() {
        let long =
            Warning { message: "ä".repeat(5000), reason: "x".repeat(500), ..Warning::default() }.bounded();
        assert_eq!((long.message.chars().count(), long.reason.len(), long.count), (MAX_MESSAGE, MAX_TEXT, 1));
    }
}
