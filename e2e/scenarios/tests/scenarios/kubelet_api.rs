//! logs, exec, attach and port-forward, as users do them.

use crate::manifests::{FOREVER, drop_namespace, offloaded, pod};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use liquid_scenarios::{Cluster, Environment, Program};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);
/// What goes through a port-forward.
const MEGABYTES: usize = 10;

async fn running(home: &Cluster, namespace: &str, name: &str, script: &str) -> anyhow::Result<()> {
    home.apply(namespace, &pod(name, script)).await?;
    home.wait_for_pods(namespace, &format!("app={name}"), 1, SOON).await?;
    Ok(())
}

/// kubectl as it is, with WebSocket to the API server, and as it was, with SPDY.
fn both_protocols(home: &Cluster) -> [Program; 2] {
    let old = home.kubectl.clone();
    let old =
        old.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
    [home.kubectl.clone(), old]
}

/// Would catch: log options that are ignored on the way (0 taken for "all"), logs that end early, and a follow that does
/// not follow, or does not end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn logs_with_all_their_options() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "logs").await?;
    running(home, "logs", "talker", "echo one; echo two; echo three; exec sleep 600").await?;
    let logs = |options: &[&str]| {
        let mut arguments = vec!["logs", "-n", "logs", "talker"];
        arguments.extend(options);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let kubectl = home.kubectl.clone();
        async move { kubectl.run(arguments).await?.ok() }
    };
    assert_eq!(logs(&[]).await?, "one\ntwo\nthree\n");
    assert_eq!(logs(&["--tail=1"]).await?, "three\n");
    assert_eq!(logs(&["--tail=0"]).await?, "");
    assert_eq!(logs(&["--limit-bytes=5"]).await?, "one\nt");
    assert_eq!(logs(&["--since=1h"]).await?, "one\ntwo\nthree\n");
    assert_eq!(logs(&["--since-time=2100-01-01T00:00:00Z"]).await?, "");
    let stamped = logs(&["--timestamps"]).await?;
    assert!(stamped.lines().all(|line| line.contains('T') && line.contains('Z')), "{stamped}");
    let previous = home.kubectl.run(["logs", "-n", "logs", "talker", "--previous"]).await?;
    assert!(previous.err.contains("previous terminated container"), "{previous:?}");
    let unknown = home.kubectl.run(["logs", "-n", "logs", "talker", "-c", "nobody"]).await?;
    assert_ne!(unknown.code, 0);

    running(home, "logs", "counter", "for i in 1 2 3 4 5; do echo $i; sleep 1; done").await?;
    let follow = timeout(SOON, home.kubectl.run(["logs", "-n", "logs", "-f", "counter"])).await??;
    assert_eq!(follow.ok()?, "1\n2\n3\n4\n5\n", "follows, and ends with the container");
    drop_namespace(home, "logs").await
}

/// Would catch: streams that are mixed up or cut off, exit codes that get lost, input that does not arrive or whose end
/// does not; over both protocols.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn exec_with_input_output_and_exit_code() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "exec").await?;
    running(home, "exec", "box", FOREVER).await?;
    for kubectl in both_protocols(home) {
        let exec = |options: &[&str]| {
            let mut arguments = vec!["exec".to_owned(), "-n".to_owned(), "exec".to_owned()];
            arguments.extend(options.iter().map(|option| (*option).to_owned()));
            arguments
        };
        let both = kubectl.run(exec(&["box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])).await?;
        assert_eq!((both.code, both.out.as_str()), (7, "out\n"));
        assert!(both.err.starts_with("err\n"), "{}", both.err);

        // More than any window or buffer on the way.
        let input: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let sum = kubectl.run_with_input(exec(&["-i", "box", "--", "md5sum"]), &input).await?.ok()?;
        let expected = md5(&input).await?;
        assert_eq!(sum.split_whitespace().next(), Some(expected.as_str()));

        let big = kubectl.run(exec(&["box", "--", "sh", "-c", "seq 1 300000"])).await?.ok()?;
        assert_eq!(big.lines().count(), 300_000, "nothing of the output is cut off");
        assert!(big.ends_with("299999\n300000\n"));

        let missing = kubectl.run(exec(&["box", "--", "no-such-program"])).await?;
        assert_ne!(missing.code, 0);
    }
    drop_namespace(home, "exec").await
}

async fn md5(input: &[u8]) -> anyhow::Result<String> {
    let sum = Program::new("md5sum").run_with_input(Vec::<String>::new(), input).await?.ok()?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Would catch: attach that returns at once or shows nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn attach_to_a_running_container() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "attach").await?;
    let manifest = pod("echo", "while read line; do echo got $line; done").replace(
        "      imagePullPolicy: IfNotPresent\n",
        "      imagePullPolicy: IfNotPresent\n      stdin: true\n      stdinOnce: true\n",
    );
    home.apply("attach", &manifest).await?;
    home.wait_for_pods("attach", "app=echo", 1, SOON).await?;
    for kubectl in both_protocols(home).into_iter().take(1) {
        let attached =
            kubectl.run_with_input(["attach", "-n", "attach", "-i", "echo"], b"this\nthat\n").await?;
        assert!(attached.out.contains("got this") && attached.out.contains("got that"), "{attached:?}");
    }
    drop_namespace(home, "attach").await
}

/// Would catch: bytes lost, changed or reordered in a port-forward, in either direction, and its end not carried over;
/// over both protocols.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn port_forward_carries_ten_megabytes_both_ways() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "forward").await?;
    running(home, "forward", "mirror", "while :; do nc -l -p 8080 -e cat; done").await?;
    for kubectl in both_protocols(home) {
        let mut forward = kubectl.start(["port-forward", "-n", "forward", "pod/mirror", ":8080"])?;
        let mut lines = BufReader::new(forward.stdout.take().context("no output")?).lines();
        let line = timeout(SOON, lines.next_line()).await??.context("port-forward ended")?;
        let port: u16 = line
            .split(" -> ")
            .next()
            .and_then(|left| left.rsplit(':').next())
            .and_then(|port| port.trim().parse().ok())
            .with_context(|| format!("no port in {line:?}"))?;
        // It takes one connection at a time.
        let listening = "until netstat -ltn | grep -q :8080; do usleep 10000; done";
        home.kubectl.run(["exec", "-n", "forward", "mirror", "--", "sh", "-c", listening]).await?.ok()?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut from, mut to) = stream.into_split();
        let sent: Vec<u8> = (0..=250_u8).cycle().take(MEGABYTES * 1024 * 1024).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move { to.write_all(&sent).await.map(|()| to) });
        let mut received = vec![0; expected.len()];
        timeout(SOON, from.read_exact(&mut received)).await.context("the echo stopped")??;
        assert!(received == expected, "what came back is not what was sent");
        drop(writer.await??);
        forward.kill().await?;
    }
    drop_namespace(home, "forward").await
}

/// Where the kubelet API of a node is.
pub(crate) fn kubelet_address(node: Node) -> anyhow::Result<SocketAddr> {
    let status = node.status.context("no status")?;
    let address = status.addresses.into_iter().flatten().find(|a| a.type_ == "InternalIP");
    let address = address.context("no address")?.address;
    let port = status.daemon_endpoints.and_then(|d| d.kubelet_endpoint).context("no port")?.port;
    Ok(SocketAddr::new(address.parse()?, port.try_into()?))
}

/// Would catch: a kubelet API that answers anybody who reaches it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn the_kubelet_api_answers_nobody_without_a_right() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let home = &environment.home;
    offloaded(home, "auth").await?;
    running(home, "auth", "secretive", "echo secret; exec sleep 600").await?;
    let node = home.wait_for_node("liquid-provider", true, SOON).await?;
    let address = kubelet_address(node)?;
    let url = format!("https://{address}/containerLogs/auth/secretive/main");
    let token = home.kubectl.run(["create", "token", "default", "-n", "auth"]).await?.ok()?;
    // From a node at home: like every pod there it can reach the address.
    let lab = environment.lab.as_ref().context("this needs the lab")?;
    let node = lab.cluster("a")?.nodes().into_iter().next().context("no node")?;
    for (credentials, expected) in [
        (None, "401"),
        (Some("Bearer wrong".to_owned()), "401"),
        (Some(format!("Bearer {}", token.trim())), "403"),
    ] {
        let mut arguments = vec!["netns", "exec"];
        let netns = node.netns();
        arguments.extend([netns.as_str(), "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        let header = credentials.map(|credentials| format!("Authorization: {credentials}"));
        if let Some(header) = &header {
            arguments.extend(["-H", header]);
        }
        let answer = Program::new("ip").run(arguments).await?.ok()?;
        assert_eq!(answer.trim(), expected, "{header:?}");
    }
    drop_namespace(home, "auth").await
}
