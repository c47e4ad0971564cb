//! The HTTPS end of the kubelet API of one virtual node.

use super::auth::{Access, AuthError, Authenticator};
use super::observe::Observer;
use super::proxy::{Call, forward};
use crate::mirror::{Link, Mirror};
use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use liquid_link::proto::Operation;
use liquid_reflection::Key;
use liquid_runtime::tls::{ReloadableCert, certificates, provider};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

/// Ports tried for one node, beginning with the first.
const PORT_RANGE: u16 = 1000;
/// Time for the TLS handshake and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections per node: each open `kubectl logs -f`, exec or port-forward is one.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after an accept error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The kubelet API of one virtual node.
#[derive(Clone)]
pub(crate) struct KubeletApi {
    node: String,
    link: watch::Receiver<Link>,
    observer: Observer,
    authenticator: Arc<Authenticator>,
}

impl KubeletApi {
    /// Answers for `node`, whose pods are those that `mirror` knows.
    pub(crate) fn new(
        node: String,
        client: Client,
        mirror: &Arc<Mirror>,
        authenticator: Arc<Authenticator>,
    ) -> Self {
        let link = mirror.link.clone();
        let observer = Observer::new(node.clone(), client, mirror);
        Self { node, link, observer, authenticator }
    }
}

/// A kubelet API that listens; it ends when this is dropped.
pub(crate) struct Listening {
    /// Its port.
    pub(crate) port: u16,
    /// Its certificate; until one is set, handshakes fail.
    pub(crate) certificate: Arc<ReloadableCert>,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who signs client certificates, for the kubelet APIs of all virtual nodes.
#[derive(Clone)]
pub(crate) struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// Takes certificates that are signed by one of `authorities` (PEM).
    pub(crate) fn new(authorities: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authorities)? {
            roots.add(certificate)?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()?;
        Ok(Self(clients))
    }
}

/// Serves `api` on the first free port from `first`; clients may present certificates of `client_ca`.
pub(crate) async fn listen(first: u16, client_ca: &ClientCa, api: KubeletApi) -> anyhow::Result<Listening> {
    let certificate = Arc::new(ReloadableCert::default());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(client_ca.0.clone())
        .with_cert_resolver(certificate.clone());
    // API servers upgrade connections, which HTTP/2 has no means for.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // API servers keep connections and resume none: a cache of sessions for each node would only take memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let (listener, port) = bind(first)?;
    info!(node = %api.node, port, "kubelet API listens");
    let task = tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), api));
    Ok(Listening { port, certificate, task })
}

fn bind(first: u16) -> anyhow::Result<(TcpListener, u16)> {
    for port in first..first.saturating_add(PORT_RANGE) {
        match liquid_runtime::listen::listen((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(listener) => return Ok((listener, port)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("no free port for the kubelet API between {first} and {}", first.saturating_add(PORT_RANGE))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, api: KubeletApi) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a kubelet connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            warn!(node = %api.node, %address, "kubelet connection closed: too many are open");
            continue;
        };
        let (acceptor, api) = (acceptor.clone(), api.clone());
        tokio::spawn(async move {
            serve(stream, address, acceptor, api).await;
            drop(slot);
        });
    }
}

async fn serve(stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, api: KubeletApi) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "kubelet connection lost");
        return;
    }
    let stream = match timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%address, %error, "kubelet handshake failed"),
        Err(_) => return debug!(%address, "kubelet handshake timed out"),
    };
    let certificate =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|c| c.to_vec());
    let certificate = Arc::new(certificate);
    let service = service_fn(move |request| {
        let (api, certificate) = (api.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(api.answer(request, certificate.as_deref()).await) }
    });
    let server = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = server.await {
        debug!(%address, %error, "kubelet connection ended");
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Health,
    Pods,
    RunningPods,
    Summary,
    Metrics(Operation),
    Pod { operation: Operation, pod: Key, container: String },
}

impl KubeletApi {
    async fn answer(&self, request: Request<Incoming>, certificate: Option<&[u8]>) -> Response<Body> {
        let authorization =
            request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let user = match self.authenticator.authenticate(certificate, authorization).await {
            Ok(user) => user,
            Err(error) => return refuse(&error),
        };
        let access = access(request.method(), request.uri().path());
        if let Err(error) = self.authenticator.authorize(&user, access, &self.node).await {
            return refuse(&error);
        }
        let route = route(request.uri().path());
        let whole = !matches!(route, None | Some(Route::Pod { .. }));
        if whole && request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n");
        }
        match route {
            None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some(Route::Health) => text(StatusCode::OK, "ok"),
            Some(Route::Pods) => self.observer.pods().await,
            Some(Route::RunningPods) => self.observer.running_pods().await,
            Some(Route::Summary) => self.observer.summary(request.uri().query().unwrap_or_default()).await,
            Some(Route::Metrics(operation)) => self.observer.metrics(operation).await,
            Some(Route::Pod { operation, pod, container }) => {
                if let Err(message) = check(operation, request.method(), request.uri().query()) {
                    return text(StatusCode::BAD_REQUEST, &format!("{message}\n"));
                }
                let link = self.link.borrow().clone();
                match link {
                    Link::Up(channel) => {
                        let call = Call { operation, node: self.node.clone(), pod, container };
                        forward(channel, call, request).await
                    }
                    Link::Down(why) | Link::Lost { why, .. } => {
                        let message = format!("the provider of {} is not connected: {why}\n", self.node);
                        text(StatusCode::SERVICE_UNAVAILABLE, &message)
                    }
                }
            }
        }
    }
}

/// Verb and subresource of node authorisation, as kubelets derive them.
fn access(method: &Method, path: &str) -> Access {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    };
    Access { verb, subresources }
}

fn route(path: &str) -> Option<Route> {
    let mut parts = path.trim_matches('/').split('/');
    let operation = match parts.next()? {
        "healthz" | "pods" | "runningpods" | "stats" | "metrics" => return node_route(path),
        "containerLogs" => Operation::Logs,
        "exec" => Operation::Exec,
        "attach" => Operation::Attach,
        "portForward" => Operation::PortForward,
        _ => return None,
    };
    let rest: Vec<&str> = parts.collect();
    // Kubelets accept the UID of the pod in between; names are unique at any time, so it adds nothing.
    let (namespace, name, container) = match (operation, rest.as_slice()) {
        (Operation::PortForward, [namespace, name] | [namespace, name, _]) => (namespace, name, ""),
        (Operation::Logs, [namespace, name, container])
        | (
            Operation::Exec | Operation::Attach,
            [namespace, name, container] | [namespace, name, _, container],
        ) => (namespace, name, *container),
        _ => return None,
    };
    let plain = |part: &str| !part.is_empty() && !part.contains('%');
    (plain(namespace) && plain(name)).then(|| Route::Pod {
        operation,
        pod: Key::new(namespace, name),
        container: container.to_owned(),
    })
}

/// What is about the node as a whole.
fn node_route(path: &str) -> Option<Route> {
    match path.trim_matches('/') {
        // Kubelets check a part of themselves each; of these this process has none that could fail on its own.
        "healthz" | "healthz/ping" | "healthz/log" | "healthz/syncloop" => Some(Route::Health),
        "pods" => Some(Route::Pods),
        "runningpods" => Some(Route::RunningPods),
        "stats/summary" => Some(Route::Summary),
        "metrics/resource" => Some(Route::Metrics(Operation::Resource)),
        "metrics/cadvisor" => Some(Route::Metrics(Operation::Cadvisor)),
        "metrics/probes" => Some(Route::Metrics(Operation::Probes)),
        _ => None,
    }
}

/// What kubelets refuse themselves.
fn check(operation: Operation, method: &Method, query: Option<&str>) -> Result<(), String> {
    let upgrade = !matches!(operation, Operation::Logs);
    if !(method == Method::GET || (upgrade && method == Method::POST)) {
        return Err(format!("method {method} is not allowed"));
    }
    let parameters: Vec<(String, String)> = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let value =
        |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    match operation {
        Operation::Logs => {
            for (name, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
                if let Some(text) = value(name) {
                    let number = text.parse::<i64>().map_err(|_| format!("{name}: {text:?} is no number"))?;
                    if number < least {
                        return Err(format!("{name} must be at least {least}"));
                    }
                }
            }
            if value("sinceSeconds").is_some() && value("sinceTime").is_some() {
                return Err("only one of sinceSeconds and sinceTime may be given".to_owned());
            }
            Ok(())
        }
        Operation::Exec | Operation::Attach => {
            let on = |name: &str| matches!(value(name), Some("1" | "true"));
            if on("tty") && on("error") {
                return Err("tty and error cannot both be asked for".to_owned());
            }
            if !["input", "output", "error"].into_iter().any(on) {
                return Err("one of input, output and error must be asked for".to_owned());
            }
            Ok(())
        }
        Operation::PortForward
        | Operation::Stats
        | Operation::Resource
        | Operation::Cadvisor
        | Operation::Probes
        | Operation::Unspecified => Ok(()),
    }
}

fn refuse(error: &AuthError) -> Response<Body> {
    let status = match error {
        AuthError::Unauthenticated => StatusCode::UNAUTHORIZED,
        AuthError::Forbidden { .. } => StatusCode::FORBIDDEN,
        AuthError::Undecided(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, &format!("{error}\n"))
}

pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_a_kubelet_are_known() {
        let pod = |operation, container: &str| {
            Some(Route::Pod { operation, pod: Key::new("shop", "web-0"), container: container.to_owned() })
        };
        assert_eq!(route("/containerLogs/shop/web-0/c"), pod(Operation::Logs, "c"));
        assert_eq!(route("/exec/shop/web-0/c"), pod(Operation::Exec, "c"));
        assert_eq!(route("/exec/shop/web-0/uid/c"), pod(Operation::Exec, "c"));
        assert_eq!(route("/attach/shop/web-0/c"), pod(Operation::Attach, "c"));
        assert_eq!(route("/portForward/shop/web-0"), pod(Operation::PortForward, ""));
        assert_eq!(route("/portForward/shop/web-0/uid"), pod(Operation::PortForward, ""));
        assert_eq!(route("/healthz"), Some(Route::Health));
        assert_eq!(route("/healthz/syncloop"), Some(Route::Health));
        assert_eq!(route("/pods"), Some(Route::Pods));
        assert_eq!(route("/runningpods/"), Some(Route::RunningPods));
        assert_eq!(route("/stats/summary/"), Some(Route::Summary));
        assert_eq!(route("/metrics/probes"), Some(Route::Metrics(Operation::Probes)));
        for other in [
            "/",
            "/pods/x",
            "/stats",
            "/metrics",
            "/metrics/x",
            "/exec",
            "/exec/shop",
            "/containerLogs/shop/web-0",
            "/exec/shop/..%2fx/c",
            "/run/a/b/c",
        ] {
            assert_eq!(route(other), None, "{other}");
        }
    }

    #[test]
    fn access_is_named_as_kubelets_name_it() {
        let proxy: &[&str] = &["proxy"];
        for (method, path, verb, subresources) in [
            (Method::GET, "/containerLogs/a/b/c", "get", proxy),
            (Method::POST, "/exec/a/b/c", "create", proxy),
            (Method::GET, "/podsecrets", "get", proxy),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/metrics/resource", "get", &["metrics"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz/ping", "get", &["healthz", "proxy"]),
        ] {
            assert_eq!(access(&method, path), Access { verb, subresources }, "{path}");
        }
    }

    #[test]
    fn bad_queries_are_refused_with_a_reason() {
        let logs = |query| check(Operation::Logs, &Method::GET, Some(query));
        assert!(logs("tailLines=0&follow=true").is_ok());
        for bad in
            ["tailLines=-1", "tailLines=x", "limitBytes=0", "sinceSeconds=0", "sinceSeconds=1&sinceTime=x"]
        {
            assert!(logs(bad).is_err(), "{bad}");
        }
        let exec = |query| check(Operation::Exec, &Method::POST, Some(query));
        assert!(exec("command=ls&output=1").is_ok());
        assert!(exec("command=ls").is_err());
        assert!(exec("tty=1&error=1&output=1").is_err());
        assert!(check(Operation::Logs, &Method::POST, None).is_err());
    }
}
