//! A network in namespaces: two sites, each a client behind a gateway, and the internet between them.
//!
//! ```text
//! site a: client ── gateway ── internet ── gateway ── client: site b
//! ```
//! Everything is gone when the values are dropped.

#![allow(dead_code, reason = "each program uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
pub(crate) use liquid_load::pause;

use liquid_gateway::wireguard::key::{PrivateKey, PublicKey};

/// Names the program of wireguard-go, which is not built then.
const WIREGUARD_GO: &str = "WIREGUARD_GO";
/// How long anything may take to come about.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Tries until it works.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        pause(Duration::from_millis(20));
    }
}

fn run(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments).unwrap()
}

/// A network namespace, which is gone with the last value that stands for it.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    _owned: Arc<Owned>,
}

#[derive(Debug)]
struct Owned(String);

impl Namespace {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        let namespace = Self { _owned: Arc::new(Owned(name.clone())), name };
        namespace.ip("link set lo up");
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            namespace.inside(|| fs::write(format!("/proc/sys/{key}"), value).unwrap());
        }
        namespace
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a function on a thread in the namespace.
    pub(crate) fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        liquid_load::inside(&self.path(), function)
    }

    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// A counter of `/proc/net/snmp` or `/proc/net/snmp6`.
    pub(crate) fn counter(&self, protocol: &str, name: &str) -> u64 {
        let text = self.inside(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split_whitespace().position(|word| word == name).unwrap();
        values.split_whitespace().nth(at).unwrap().parse().unwrap()
    }

    /// Packets that arrived with a wrong checksum.
    pub(crate) fn checksum_errors(&self) -> u64 {
        let v6 = self.inside(|| fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
        let v6 = v6.lines().filter(|line| line.contains("InCsumErrors"));
        let v6: u64 = v6.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum();
        let v4 = [("Tcp", "InCsumErrors"), ("Udp", "InCsumErrors"), ("Icmp", "InCsumErrors")];
        v4.map(|(protocol, name)| self.counter(protocol, name)).iter().sum::<u64>() + v6
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Whatever still runs in it keeps the kernel from freeing it, but not its name.
        if let Err(error) = run("ip", &format!("netns del {}", self.0)) {
            eprintln_once(&error);
        }
    }
}

#[allow(clippy::print_stderr, reason = "the last word of a test")]
fn eprintln_once(text: &str) {
    eprintln!("{text}");
}

/// What a site has.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) client: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) key: PrivateKey,
    pub(crate) device: String,
    directory: tempfile::TempDir,
    /// Addresses of the client, and of the gateway outside.
    pub(crate) inner: [IpAddr; 2],
    pub(crate) outer: [IpAddr; 2],
    /// The site's own prefixes, and where it sees the other's.
    pub(crate) real: [&'static str; 2],
    pub(crate) view: [&'static str; 2],
}

/// Two sites and what is between.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) internet: Namespace,
    pub(crate) a: Site,
    pub(crate) b: Site,
}

/// Whether both sites have the same prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefixes {
    /// Both have 10.244.0.0/16 and fd00:244::/32, and even the same client address.
    Overlapping,
    /// They differ, so that ends that do not translate can take part.
    Disjoint,
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

impl World {
    pub(crate) fn new(prefixes: Prefixes) -> Self {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("lg{}-{number}", std::process::id());
        let internet = Namespace::new(format!("{prefix}-net"));
        let equal = (["10.244.0.0/16", "fd00:244::/32"], ["10.244.1.2", "fd00:244:1::2"]);
        let other = (["10.245.0.0/16", "fd00:245::/32"], ["10.245.1.2", "fd00:245:1::2"]);
        let (real_b, inner_b) = if prefixes == Prefixes::Overlapping { equal } else { other };
        let views = match prefixes {
            Prefixes::Overlapping => [["10.71.0.0/16", "fd00:71::/32"], ["10.72.0.0/16", "fd00:72::/32"]],
            Prefixes::Disjoint => [real_b, equal.0],
        };
        let site = |letter: &str, real, inner: [&str; 2], outer: [&str; 2], view, seed| {
            let client = Namespace::new(format!("{prefix}-c{letter}"));
            let gateway = Namespace::new(format!("{prefix}-g{letter}"));
            Site {
                client,
                gateway,
                key: PrivateKey::new([seed; 32]),
                device: format!("lg{}{number}{letter}", std::process::id()),
                directory: tempfile::tempdir().unwrap(),
                inner: inner.map(|text| text.parse().unwrap()),
                outer: outer.map(|text| text.parse().unwrap()),
                real,
                view,
            }
        };
        let a = site("a", equal.0, equal.1, ["192.0.2.2", "2001:db8:1::2"], views[0], 41);
        let b = site("b", real_b, inner_b, ["198.51.100.2", "2001:db8:2::2"], views[1], 42);
        let world = Self { internet, a, b };
        for (site, link) in [(&world.a, "to-a"), (&world.b, "to-b")] {
            let [inner4, inner6] = site.inner.map(neighbour);
            let [outer4, outer6] = site.outer.map(neighbour);
            ip(&format!(
                "link add in netns {} type veth peer name eth0 netns {}",
                site.gateway.name, site.client.name
            ));
            ip(&format!(
                "link add out netns {} type veth peer name {link} netns {}",
                site.gateway.name, world.internet.name
            ));
            site.client.ip(&format!("addr add {}/24 dev eth0", site.inner[0]));
            site.client.ip(&format!("addr add {}/64 dev eth0 nodad", site.inner[1]));
            site.client.ip("link set eth0 up");
            site.gateway.ip(&format!("addr add {inner4}/24 dev in"));
            site.gateway.ip(&format!("addr add {inner6}/64 dev in nodad"));
            site.gateway.ip("link set in up");
            site.gateway.ip(&format!("addr add {}/24 dev out", site.outer[0]));
            site.gateway.ip(&format!("addr add {}/64 dev out nodad", site.outer[1]));
            site.gateway.ip("link set out up");
            world.internet.ip(&format!("addr add {outer4}/24 dev {link}"));
            world.internet.ip(&format!("addr add {outer6}/64 dev {link} nodad"));
            world.internet.ip(&format!("link set {link} up"));
            site.client.ip(&format!("route add default via {inner4}"));
            site.client.ip(&format!("route add default via {inner6}"));
            site.gateway.ip(&format!("route add default via {outer4}"));
            site.gateway.ip(&format!("route add default via {outer6}"));
        }
        world
    }

    /// A second gateway of site B, between the same client and the internet.
    pub(crate) fn second(&self) -> Site {
        let b = &self.b;
        let outer: [IpAddr; 2] = ["203.0.113.2", "2001:db8:3::2"].map(|text| text.parse().unwrap());
        let second = Site {
            client: b.client.clone(),
            gateway: Namespace::new(format!("{}2", b.gateway.name)),
            key: PrivateKey::new([43; 32]),
            device: format!("{}2", b.device),
            directory: tempfile::tempdir().unwrap(),
            inner: b.inner,
            outer,
            real: b.real,
            view: b.view,
        };
        let name = &second.gateway.name;
        ip(&format!("link add in netns {name} type veth peer name eth1 netns {}", b.client.name));
        ip(&format!("link add out netns {name} type veth peer name to-b2 netns {}", self.internet.name));
        b.client.ip("link set eth1 up");
        for (namespace, command) in [
            (&second.gateway, "link set in up".to_owned()),
            (&second.gateway, "link set out up".to_owned()),
            (&second.gateway, format!("route add {}/32 dev in", b.inner[0])),
            (&second.gateway, format!("addr add {}/24 dev out", outer[0])),
            (&second.gateway, format!("route add default via {}", neighbour(outer[0]))),
            (&self.internet, "link set to-b2 up".to_owned()),
            (&self.internet, format!("addr add {}/24 dev to-b2", neighbour(outer[0]))),
        ] {
            namespace.ip(&command);
        }
        second
    }

    /// The site and the other.
    pub(crate) fn sites(&self, first: char) -> (&Site, &Site) {
        if first == 'a' { (&self.a, &self.b) } else { (&self.b, &self.a) }
    }
}

/// The address at the other end of the link: 1 for 2.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() - 1).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() - 1).into()),
    }
}

/// A gateway as the other site knows it.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) key: PublicKey,
    pub(crate) endpoint: SocketAddr,
    pub(crate) probes: bool,
}

impl Site {
    /// The client of the other site, as seen from this one.
    pub(crate) fn sees(&self, other: &Site, family: usize) -> IpAddr {
        let view: ipnet::IpNet = self.view[family].parse().unwrap();
        let real: ipnet::IpNet = other.real[family].parse().unwrap();
        liquid_gateway::nat::Remap::new(view, real).unwrap().to_view(other.inner[family]).unwrap()
    }

    /// Starts `liquid-gateway` here; the tunnel uses the outer addresses of `family` (0: IPv4, 1: IPv6).
    pub(crate) fn start_gateway(&self, other: &Site, family: usize) -> Process {
        self.start_with(other, &[other.end(family)], &[])
    }

    /// Where and by which key the gateway of this site is known.
    pub(crate) fn end(&self, family: usize) -> End {
        End { key: self.key.public(), endpoint: SocketAddr::new(self.outer[family], 51_820), probes: false }
    }

    /// Starts `liquid-gateway` here, with a tunnel to each of these ends of the other site.
    pub(crate) fn start_with(&self, other: &Site, ends: &[End], arguments: &[&str]) -> Process {
        self.write_config(other, ends);
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = self.gateway.command(gateway_binary());
        command.arg("--config").arg(self.directory.path().join("gateway.yaml")).args(arguments);
        let process = Process::start(command.stderr(log).stdout(Stdio::null()));
        self.route();
        process
    }

    /// Writes the configuration: SIGHUP makes the gateway read it again.
    pub(crate) fn write_config(&self, other: &Site, ends: &[End]) {
        let base64 = |key: &[u8]| base64::engine::general_purpose::STANDARD.encode(key);
        let directory = self.directory.path();
        fs::write(directory.join("key"), base64(self.key_bytes())).unwrap();
        fs::write(directory.join("psk"), base64(&[99; 32])).unwrap();
        let prefixes =
            [0, 1].map(|family| format!("{{real: '{}', view: '{}'}}", other.real[family], self.view[family]));
        let tunnels = ends.iter().enumerate().map(|(number, end)| {
            format!(
                "{{name: g{number}, publicKey: {}, presharedKeyFile: psk, endpoints: ['{}'], keepaliveSeconds: 25, probes: {}}}",
                end.key, end.endpoint, end.probes
            )
        });
        let config = format!(
            "privateKeyFile: key\ndevice: {}\nlocal: ['{}', '{}']\npeers:\n- name: other\n  prefixes: [{}]\n  \
             tunnels: [{}]\n",
            self.device,
            self.real[0],
            self.real[1],
            prefixes.join(", "),
            tunnels.collect::<Vec<_>>().join(", "),
        );
        fs::write(directory.join("gateway.yaml"), config).unwrap();
    }

    /// Seeds are the whole key.
    fn key_bytes(&self) -> &'static [u8; 32] {
        let known = [&[41; 32], &[42; 32], &[43; 32]];
        known.into_iter().find(|seed| self.key == PrivateKey::new(**seed)).unwrap()
    }

    /// Sends what is for the other site into the tunnel, once its device is there.
    fn route(&self) {
        for view in self.view {
            let family = if view.contains(':') { "-6" } else { "-4" };
            let arguments =
                format!("{family} -n {} route replace {view} dev {}", self.gateway.name, self.device);
            eventually(&format!("route {view} of {}: {}", self.device, self.log()), || {
                run("ip", &arguments).ok()
            });
        }
    }

    /// What the gateway has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Starts another implementation here.
    pub(crate) fn start_other(&self, other: &Site, implementation: Other, mtu: u16) -> Process {
        let socket = PathBuf::from(format!("/var/run/wireguard/{}.sock", self.device));
        drop(fs::remove_file(&socket));
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = self.gateway.command(implementation.binary());
        match implementation {
            Other::WireguardGo => command.args(["-f", &self.device]),
            Other::BoringtunCli => command.args(["--foreground", "--disable-drop-privileges", &self.device]),
        };
        let mut process = Process::start(command.stderr(log.try_clone().unwrap()).stdout(log));
        process.leaves = Some(socket.clone());
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let request = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\nreplace_peers=true\npublic_key={}\npreshared_key={}\nendpoint={}\n\
             persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip={}\nallowed_ip={}\n\n",
            hex(self.key_bytes()),
            hex(&other.key.public().0),
            hex(&[99; 32]),
            SocketAddr::new(other.outer[0], 51_820),
            self.view[0],
            self.view[1],
        );
        let answer =
            eventually(&format!("{implementation:?} takes its configuration: {}", self.log()), || {
                use std::io::{BufRead as _, Write as _};
                let mut stream = UnixStream::connect(&socket).ok()?;
                stream.write_all(request.as_bytes()).ok()?;
                let mut line = String::new();
                std::io::BufReader::new(stream).read_line(&mut line).ok()?;
                Some(line).filter(|line| !line.is_empty())
            });
        assert_eq!(answer.trim(), "errno=0");
        self.gateway.ip(&format!("link set {} mtu {mtu} up", self.device));
        self.route();
        process
    }
}

/// Implementations to work with and to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Other {
    WireguardGo,
    BoringtunCli,
}

impl Other {
    /// Its program, built when there is none yet.
    pub(crate) fn binary(self) -> PathBuf {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/gateway-tools");
        let (path, mut build) = match self {
            Self::WireguardGo if std::env::var_os(WIREGUARD_GO).is_some() => {
                return std::env::var_os(WIREGUARD_GO).unwrap().into();
            }
            Self::WireguardGo => {
                let mut build = Command::new("go");
                build
                    .env("GOBIN", tools.join("bin"))
                    .args(["install", "golang.zx2c4.com/wireguard@v0.0.0-20260522210424-ecfc5a8d5446"]);
                (tools.join("bin/wireguard"), build)
            }
            Self::BoringtunCli => {
                let mut build = Command::new("cargo");
                build.env("CARGO_TARGET_DIR", tools.join("target"));
                build
                    .args(["install", "-q", "--locked", "boringtun-cli", "--version", "0.7.1", "--root"])
                    .arg(&tools);
                (tools.join("bin/boringtun-cli"), build)
            }
        };
        static BUILD: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one_at_a_time = BUILD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !path.exists() {
            fs::create_dir_all(&tools).unwrap();
            assert!(build.status().unwrap().success(), "cannot build {self:?}");
        }
        path
    }
}

/// The program under test: that of the test run, or the one built beside this program's own folder.
pub(crate) fn gateway_binary() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().join("../liquid-gateway");
    option_env!("CARGO_BIN_EXE_liquid-gateway").map_or_else(beside, PathBuf::from)
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// What it does not remove itself when it is killed.
    leaves: Option<PathBuf>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        Self { child: command.stdin(Stdio::null()).spawn().unwrap(), leaves: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time it has used: user and system.
    pub(crate) fn cpu(&self) -> Duration {
        liquid_load::processor_time(Path::new(&format!("/proc/{}", self.pid()))).unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    pub(crate) fn signal(&self, signal: &str) {
        run("kill", &format!("-{signal} {}", self.pid())).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) {
        assert!(self.child.wait().unwrap().success());
    }

    fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(path) = self.leaves.take() {
            drop(fs::remove_file(path));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
