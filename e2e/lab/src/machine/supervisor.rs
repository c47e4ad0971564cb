//! Process 1 of a machine: starts its units, restarts what ends, reaps what nobody waits for.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::control::{Answer, Request, UnitStatus};
use super::{Condition, Config, Unit, control, root_fs};
use crate::host::{command, wait};

/// A unit that ended is started again after this, like a service of a real machine.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How often the condition of a waiting unit is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long process 1 sleeps when it has nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);
/// How often process 1 looks for children while it has none.
const NO_CHILDREN: Duration = Duration::from_millis(50);
/// A port of this machine answers or refuses at once.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);

enum Event {
    Ended(Pid),
    Asked(Request, UnixStream),
}

enum State {
    /// Kept down on purpose.
    Held,
    /// To be started at this time, if its condition holds.
    Due(Instant),
    Running(Pid),
    /// Killed on purpose, not gone yet.
    Stopping(Pid),
}

struct Supervised {
    unit: Unit,
    state: State,
    failures: u32,
}

/// Runs the machine; returns only if that is impossible.
pub(super) fn run(config: &Config, held: &[String], listener: UnixListener) -> anyhow::Result<()> {
    for words in &config.setup {
        let [program, arguments @ ..] = words.as_slice() else { bail!("an empty setup command") };
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", path_variable(config)).stdin(Stdio::null());
        command::finish(&mut command, None).context("cannot set the machine up")?;
    }
    let (events, inbox) = mpsc::channel();
    thread::spawn({
        let events = events.clone();
        move || reap(&events)
    });
    thread::spawn(move || listen(&listener, &events));

    let now = Instant::now();
    let mut units: Vec<Supervised> = config
        .units
        .iter()
        .map(|unit| Supervised {
            unit: unit.clone(),
            state: if held.contains(&unit.name) { State::Held } else { State::Due(now) },
            failures: 0,
        })
        .collect();
    loop {
        let pause = start_due(&mut units, config)?;
        match inbox.recv_timeout(pause) {
            Ok(Event::Ended(pid)) => ended(&mut units, pid),
            Ok(Event::Asked(request, mut stream)) => {
                let answer = obey(&mut units, &request);
                // Whoever asked may have left; that changes nothing here.
                drop(control::send(&mut stream, &answer));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody is left to report events"),
        }
    }
}

/// The `PATH` of everything that runs in a machine.
pub(super) fn path_variable(config: &Config) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", config.bin.display())
}

/// Starts every unit whose time and condition have come; returns how long to wait for the next.
fn start_due(units: &mut [Supervised], config: &Config) -> anyhow::Result<Duration> {
    let now = Instant::now();
    let mut pause = IDLE;
    for supervised in units {
        let State::Due(at) = supervised.state else {
            continue;
        };
        if at > now {
            pause = pause.min(at - now);
        } else if supervised.unit.after.as_ref().is_none_or(holds) {
            supervised.state = State::Running(start(&supervised.unit, config)?);
        } else {
            pause = pause.min(POLL);
        }
    }
    Ok(pause)
}

fn start(unit: &Unit, config: &Config) -> anyhow::Result<Pid> {
    let path = Path::new("/").join(root_fs::LOG_DIRECTORY).join(format!("{}.log", unit.name));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot open {}", path.display()))?;
    let [program, arguments @ ..] = unit.command.as_slice() else {
        bail!("unit {} has no command", unit.name)
    };
    let mut command = Command::new(program);
    if let Some(user) = unit.user {
        command.uid(user).gid(user);
    }
    let child = command
        .args(arguments)
        .env_clear()
        .envs(HashMap::from([("PATH", path_variable(config)), ("HOME", "/root".to_owned())]))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", unit.name))?;
    // Not waited for through this handle: as process 1, `reap` learns of every end.
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

fn holds(condition: &Condition) -> bool {
    match condition {
        Condition::Path(path) => path.exists(),
        Condition::Port(port) => {
            TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), CONNECT_LIMIT).is_ok()
        }
    }
}

fn ended(units: &mut [Supervised], pid: Pid) {
    for supervised in units {
        match supervised.state {
            State::Running(running) if running == pid => {
                supervised.failures = supervised.failures.saturating_add(1);
                supervised.state = State::Due(Instant::now() + RESTART_AFTER);
            }
            State::Stopping(stopping) if stopping == pid => supervised.state = State::Held,
            State::Held | State::Due(_) | State::Running(_) | State::Stopping(_) => {}
        }
    }
}

fn obey(units: &mut [Supervised], request: &Request) -> Answer {
    let (Request::Stop(name) | Request::Start(name)) = request else {
        return Ok(status(units));
    };
    let names = units.iter().map(|s| s.unit.name.clone()).collect::<Vec<_>>().join(", ");
    let supervised = units.iter_mut().find(|supervised| supervised.unit.name == *name);
    let supervised = supervised.ok_or_else(|| format!("no component '{name}' here; there are: {names}"))?;
    match (request, &supervised.state) {
        (Request::Stop(_), State::Running(pid)) => {
            match kill(*pid, Signal::SIGKILL) {
                // Gone already: its end is about to be reported.
                Ok(()) | Err(Errno::ESRCH) => supervised.state = State::Stopping(*pid),
                Err(error) => return Err(format!("cannot kill {name}: {error}")),
            }
        }
        (Request::Stop(_), State::Due(_)) => supervised.state = State::Held,
        (Request::Start(_), State::Held) => supervised.state = State::Due(Instant::now()),
        (Request::Status | Request::Stop(_) | Request::Start(_), _) => {}
    }
    Ok(status(units))
}

fn status(units: &[Supervised]) -> Vec<UnitStatus> {
    let status = |supervised: &Supervised| UnitStatus {
        name: supervised.unit.name.clone(),
        running: matches!(supervised.state, State::Running(_) | State::Stopping(_)),
        held: matches!(supervised.state, State::Held | State::Stopping(_)),
        failures: supervised.failures,
    };
    units.iter().map(status).collect()
}

fn reap(events: &Sender<Event>) {
    loop {
        match waitpid(None, None).map(|status| status.pid()) {
            Ok(Some(pid)) if events.send(Event::Ended(pid)).is_err() => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => wait::pause(NO_CHILDREN),
        }
    }
}

fn listen(listener: &UnixListener, events: &Sender<Event>) {
    for stream in listener.incoming().flatten() {
        let limited = stream.set_read_timeout(Some(CONNECT_LIMIT));
        if let (Ok(()), Ok(request)) = (limited, control::receive(&stream))
            && events.send(Event::Asked(request, stream)).is_err()
        {
            return;
        }
    }
}
