//! From a kubelet request of a consumer to the request of this cluster's API server that answers it.
//!
//! The path is built here from checked names; of the query only known parameters are taken. Nothing a consumer
//! writes becomes part of a path.

use super::figures::FigureSource;
use form_urlencoded::Serializer;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use liquid_link::proto::{Header, Operation};
use liquid_link::upgrade::UPGRADE_HEADERS;
use std::borrow::Cow;
use thiserror::Error;

/// Longest query: `kubectl exec` passes the whole command in it, and API servers take about 1 MiB of headers.
const MAX_QUERY: usize = 128 * 1024;

/// Why a kubelet request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BadRequest {
    /// The operation is not known.
    #[error("this kubelet operation is not known to the provider; it may run an older version")]
    Operation,
    /// The query is too long.
    #[error("the query is longer than {MAX_QUERY} bytes")]
    Query,
    /// The method does not fit the operation.
    #[error("method {0:?} is not allowed")]
    Method(String),
    /// A header cannot be passed on.
    #[error("a header cannot be passed on")]
    Header,
}

/// A request of the API server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
}

/// Builds the request for a pod by its names in this cluster.
pub(crate) fn target(
    operation: Operation,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
    method: &str,
    headers: &[Header],
) -> Result<Target, BadRequest> {
    if query.len() > MAX_QUERY {
        return Err(BadRequest::Query);
    }
    let (subresource, upgrade) = match operation {
        Operation::Logs => ("log", false),
        Operation::Exec => ("exec", true),
        Operation::Attach => ("attach", true),
        Operation::PortForward => ("portforward", true),
        Operation::Stats
        | Operation::Resource
        | Operation::Cadvisor
        | Operation::Probes
        | Operation::Unspecified => {
            return Err(BadRequest::Operation);
        }
    };
    let method = match (method, upgrade) {
        ("GET", _) => Method::GET,
        ("POST", true) => Method::POST,
        _ => return Err(BadRequest::Method(method.chars().take(16).collect())),
    };
    let mut parameters = Serializer::new(String::new());
    if !container.is_empty() {
        parameters.append_pair("container", container);
    }
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if let Some(name) = parameter(operation, &name) {
            parameters.append_pair(name, boolean(name, &value));
        }
    }
    let parameters = parameters.finish();
    let separator = if parameters.is_empty() { "" } else { "?" };
    Ok(Target {
        method,
        uri: format!("/api/v1/namespaces/{namespace}/pods/{pod}/{subresource}{separator}{parameters}"),
        headers: if upgrade { upgrade_headers(headers)? } else { HeaderMap::new() },
    })
}

/// The API server's name of a kubelet's parameter, if the operation knows it.
fn parameter(operation: Operation, name: &str) -> Option<&'static str> {
    match operation {
        Operation::Logs => [
            "follow",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "tailLines",
            "limitBytes",
            "stream",
        ]
        .into_iter()
        .find(|known| *known == name),
        Operation::Exec if name == "command" => Some("command"),
        Operation::Exec | Operation::Attach => match name {
            "input" => Some("stdin"),
            "output" => Some("stdout"),
            "error" => Some("stderr"),
            "tty" => Some("tty"),
            _ => None,
        },
        Operation::PortForward => (name == "port" || name == "ports").then_some("ports"),
        Operation::Stats
        | Operation::Resource
        | Operation::Cadvisor
        | Operation::Probes
        | Operation::Unspecified => None,
    }
}

/// The figures an operation asks for, if it does.
pub(crate) fn figures(operation: Operation, query: &str) -> Option<FigureSource> {
    let reduced =
        |(name, value): (Cow<'_, str>, Cow<'_, str>)| name == "only_cpu_and_memory" && value == "true";
    match operation {
        Operation::Stats if form_urlencoded::parse(query.as_bytes()).any(reduced) => {
            Some(FigureSource::CpuAndMemory)
        }
        Operation::Stats => Some(FigureSource::Summary),
        Operation::Resource => Some(FigureSource::Resource),
        Operation::Cadvisor => Some(FigureSource::Cadvisor),
        Operation::Probes => Some(FigureSource::Probes),
        Operation::Unspecified
        | Operation::Logs
        | Operation::Exec
        | Operation::Attach
        | Operation::PortForward => None,
    }
}

/// The kubelet's flags are 1 and 0, those of the API server true and false.
fn boolean<'a>(name: &str, value: &'a str) -> &'a str {
    match (name, value) {
        ("stdin" | "stdout" | "stderr" | "tty", "1") => "true",
        ("stdin" | "stdout" | "stderr" | "tty", "0") => "false",
        _ => value,
    }
}

/// Whether a header (in lower case) belongs to the upgrade, in a request or an answer.
pub(crate) fn belongs_to_upgrade(name: &str) -> bool {
    UPGRADE_HEADERS.contains(&name) || name == "sec-websocket-accept"
}

fn upgrade_headers(headers: &[Header]) -> Result<HeaderMap, BadRequest> {
    let mut passed = HeaderMap::new();
    for Header { name, value } in headers {
        if belongs_to_upgrade(&name.to_ascii_lowercase()) {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BadRequest::Header)?;
            let value = HeaderValue::from_bytes(value).map_err(|_| BadRequest::Header)?;
            passed.append(name, value);
        }
    }
    if !passed.contains_key(header::UPGRADE) {
        passed.remove(header::CONNECTION);
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(operation: Operation, container: &str, query: &str) -> String {
        target(operation, "shop-milan", "web-0", container, query, "GET", &[]).unwrap().uri
    }

    #[test]
    fn log_parameters_keep_their_names_and_others_are_left_out() {
        assert_eq!(
            uri(Operation::Logs, "c", "tailLines=0&follow=true&sinceTime=2026-01-02T03%3A04%3A05Z&pretty=1"),
            "/api/v1/namespaces/shop-milan/pods/web-0/log?container=c&tailLines=0&follow=true&sinceTime=2026-01-02T03%3A04%3A05Z"
        );
        assert_eq!(uri(Operation::Logs, "", ""), "/api/v1/namespaces/shop-milan/pods/web-0/log");
    }

    #[test]
    fn a_command_is_passed_word_by_word() {
        assert_eq!(
            uri(
                Operation::Exec,
                "c",
                "command=sh&command=-c&command=echo+%22a%26b%22&input=1&output=1&error=0&tty=1"
            ),
            "/api/v1/namespaces/shop-milan/pods/web-0/exec?container=c&command=sh&command=-c&command=echo+%22a%26b%22&stdin=true&stdout=true&stderr=false&tty=true"
        );
    }

    #[test]
    fn only_the_headers_of_the_upgrade_pass() {
        let header = |name: &str, value: &str| Header {
            name: name.to_owned(),
            value: value.as_bytes().to_vec().into(),
        };
        let headers = [
            header("Connection", "Upgrade"),
            header("Upgrade", "SPDY/3.1"),
            header("X-Stream-Protocol-Version", "v5.channel.k8s.io"),
            header("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
            header("Authorization", "Bearer secret"),
            header("Impersonate-User", "system:admin"),
            header("X-Forwarded-For", "192.0.2.1"),
        ];
        let target = target(Operation::Exec, "n", "p", "c", "", "POST", &headers).unwrap();
        assert_eq!(target.headers.len(), 4);
        assert_eq!(target.headers.get_all("x-stream-protocol-version").iter().count(), 2);
        assert!(!target.headers.contains_key("authorization"));
    }

    #[test]
    fn other_methods_and_operations_are_refused() {
        for (operation, method) in
            [(Operation::Logs, "POST"), (Operation::Exec, "DELETE"), (Operation::Unspecified, "GET")]
        {
            assert!(target(operation, "n", "p", "c", "", method, &[]).is_err(), "{operation:?} {method}");
        }
        let long = "x".repeat(MAX_QUERY + 1);
        assert_eq!(target(Operation::Exec, "n", "p", "c", &long, "POST", &[]), Err(BadRequest::Query));
    }
}
