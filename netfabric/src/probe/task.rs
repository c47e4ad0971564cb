//! Sends and receives probes over the overlay.

use super::wire::{Datagram, LENGTH};
use super::{Figures, Prober};
use crate::state::over_overlay;
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, info};

/// Time before a socket is opened again that failed: the overlay device is being made anew, say.
const REOPEN: Duration = Duration::from_millis(100);

/// Nodes that are remembered to have probed: more than Kubernetes supports in a cluster.
const MAX_HEARD: usize = 8192;

/// Where probes go, or are answered. When it changes, sockets are opened anew: they belong to a device by its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aim {
    /// Name and number of the overlay device; none if it is not there.
    pub device: Option<(String, u32)>,
    /// The own address.
    pub local: Option<IpAddr>,
    /// Names of the gateways by their addresses; on nodes only.
    pub gateways: BTreeMap<IpAddr, String>,
    /// Whether this gateway has a tunnel; in gateways only.
    pub serves: bool,
}

impl Aim {
    /// What a socket depends on.
    fn socket(&self) -> Option<(&str, u32, IpAddr)> {
        let (device, index) = self.device.as_ref()?;
        Some((device, *index, self.local?))
    }

    fn open(&self, port: u16) -> Option<io::Result<UdpSocket>> {
        let (device, _, local) = self.socket()?;
        // Bound to the device, whatever address it has at the moment.
        let own = if local.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { local };
        let open = || {
            let socket = std::net::UdpSocket::bind((own, port))?;
            // No route leads to the ends of the overlay over itself: bound to the device, they are its neighbours.
            setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        Some(open())
    }

    /// Where a gateway is found over the overlay.
    fn target(&self, gateway: IpAddr, port: u16) -> SocketAddr {
        match over_overlay(gateway) {
            IpAddr::V4(address) => SocketAddr::from((address, port)),
            IpAddr::V6(address) => {
                let scope = self.device.as_ref().map_or(0, |(_, index)| *index);
                SocketAddrV6::new(address, port, 0, scope).into()
            }
        }
    }

    /// The gateway that is found there.
    fn gateway(&self, from: IpAddr) -> Option<IpAddr> {
        self.gateways.keys().copied().find(|gateway| over_overlay(*gateway) == from)
    }
}

/// What was measured, for metrics: by name of the gateway, with whether it is alive.
#[derive(Debug, Clone, Default)]
pub struct Measured(Arc<Mutex<BTreeMap<String, (Figures, bool)>>>);

impl Measured {
    /// The latest figures.
    #[must_use]
    pub fn get(&self) -> BTreeMap<String, (Figures, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, prober: &Prober, aim: &Aim) {
        let dead = prober.dead();
        let named = |(address, figures): (IpAddr, Figures)| {
            Some((aim.gateways.get(&address)?.clone(), (figures, !dead.contains(&address))))
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            prober.figures().into_iter().filter_map(named).collect();
    }
}

/// A socket for the aim of now; it waits for one that is good for anything. None when nobody aims any more.
async fn aimed(aims: &mut watch::Receiver<Aim>, port: u16) -> Option<(Aim, UdpSocket)> {
    loop {
        let aim = aims.borrow_and_update().clone();
        match aim.open(port) {
            Some(Ok(socket)) => return Some((aim, socket)),
            Some(Err(error)) => {
                debug!(%error, "no socket for probes; trying again");
                sleep(REOPEN).await;
                aims.has_changed().ok()?;
            }
            None => aims.changed().await.ok()?,
        }
    }
}

/// Takes the newest aim; whether it needs another socket.
fn retarget(aim: &mut Aim, aims: &mut watch::Receiver<Aim>) -> bool {
    let before = std::mem::replace(aim, aims.borrow_and_update().clone());
    before.socket() != aim.socket()
}

/// On a node: probes the gateways for ever, and tells which are dead.
pub async fn probe(
    mut aims: watch::Receiver<Aim>,
    port: u16,
    dead: watch::Sender<BTreeSet<IpAddr>>,
    measured: Measured,
) {
    let mut prober = Prober::default();
    while let Some((mut aim, socket)) = aimed(&mut aims, 0).await {
        let mut buffer = [0; LENGTH + 1];
        loop {
            prober.aim(&aim.gateways.keys().copied().collect(), Instant::now());
            // Without targets, only a new aim wakes it up.
            let next = prober.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = sleep_until(next.into()) => {
                    for probe in prober.due(Instant::now()) {
                        let bytes = Datagram::Probe { sequence: probe.sequence }.encode();
                        // What cannot be sent is not answered, and that is what counts.
                        drop(socket.send_to(&bytes, aim.target(probe.target, port)).await);
                    }
                }
                received = socket.recv_from(&mut buffer) => {
                    // An error is of an earlier datagram that could not be delivered.
                    let Ok((length, from)) = received else { continue };
                    if let Some(Datagram::Answer { sequence, serves }) = Datagram::decode(&buffer[..length])
                        && let Some(gateway) = aim.gateway(from.ip())
                    {
                        prober.answered(gateway, sequence, serves, Instant::now());
                    }
                }
                changed = aims.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if retarget(&mut aim, &mut aims) {
                        break;
                    }
                }
            }
            let now_dead = prober.dead();
            measured.set(&prober, &aim);
            dead.send_if_modified(|before| {
                let modified = *before != now_dead;
                if modified {
                    let name = |address: &IpAddr| aim.gateways.get(address).cloned().unwrap_or_default();
                    let names = |addresses: &BTreeSet<IpAddr>| addresses.iter().map(name).collect::<Vec<_>>();
                    info!(dead = ?names(&now_dead), before = ?names(before), "gateways that do not answer changed");
                    *before = now_dead;
                }
                modified
            });
        }
    }
}

/// In a gateway: answers probes for ever, and tells of whom it has heard: of nodes that know this gateway, by their addresses
/// over the overlay.
pub async fn answer(mut aims: watch::Receiver<Aim>, port: u16, heard: watch::Sender<BTreeSet<IpAddr>>) {
    while let Some((mut aim, socket)) = aimed(&mut aims, port).await {
        let mut buffer = [0; LENGTH + 1];
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let Ok((length, from)) = received else { continue };
                    if let Some(Datagram::Probe { sequence }) = Datagram::decode(&buffer[..length]) {
                        let answer = Datagram::Answer { sequence, serves: aim.serves }.encode();
                        drop(socket.send_to(&answer, from).await);
                        heard.send_if_modified(|heard| {
                            heard.len() < MAX_HEARD && !heard.contains(&from.ip()) && heard.insert(from.ip())
                        });
                    }
                }
                changed = aims.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if retarget(&mut aim, &mut aims) {
                        break;
                    }
                }
            }
        }
    }
}
