//! All lanes of a gateway: their threads, and one handle for them.

use super::tun::Tun;
use super::udp::Udp;
use super::worker::{Handle, Report, Worker};
use crate::gateway::Config;
use crate::lanes::Lane;
use crate::peer::PeerStatus;
use crate::wireguard::key::PublicKey;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::{info, warn};

/// What gateways of peers have told of their lanes, by peer and tunnel.
type Learned = BTreeMap<(String, String), Vec<PublicKey>>;

/// The lanes from outside.
#[derive(Debug, Clone)]
pub struct Workers {
    handles: Arc<[Handle]>,
    told: Arc<Mutex<Told>>,
}

/// What the lanes were told last.
#[derive(Debug)]
struct Told {
    whole: Config,
    learned: Learned,
}

impl Workers {
    /// Starts a thread for each queue and its socket, in the order of the lanes; `ended` is called by each when it is over.
    ///
    /// # Errors
    /// If the system has no threads, event descriptors or randomness left.
    pub fn start(
        config: Config,
        ends: Vec<(Tun, Udp)>,
        ended: impl Fn(io::Result<()>) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let count = ends.len();
        let (mut workers, mut handles) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (number, (tun, udp)) in ends.into_iter().enumerate() {
            let lane = Lane { number, count };
            let own = lane.config(&config, |_, _| None);
            let (worker, handle) = Worker::new(own, (lane, &config.private_key), tun, udp)?;
            workers.push(worker);
            handles.push(handle);
        }
        for (number, mut worker) in workers.into_iter().enumerate() {
            worker.meet(&handles);
            let ended = ended.clone();
            std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
                info!(lane = number, "worker begins");
                let result = worker.run();
                if let Err(error) = &result {
                    warn!(lane = number, %error, "worker ends");
                }
                ended(result);
            })?;
        }
        let told = Arc::new(Mutex::new(Told { whole: config, learned: Learned::new() }));
        Ok(Self { handles: handles.into(), told })
    }

    /// Gives the gateway another configuration.
    pub fn configure(&self, config: Config) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.whole = config;
        self.tell(&told);
    }

    /// Makes use of what gateways of peers have told of their lanes since the last time.
    pub fn learn(&self) {
        let Some(first) = self.handles.first() else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = learned(&first.report());
        if learned != told.learned {
            info!(gateways = learned.len(), "gateways of peers have told of their lanes");
            told.learned = learned;
            self.tell(&told);
        }
    }

    fn tell(&self, told: &Told) {
        let count = self.handles.len();
        for (number, handle) in self.handles.iter().enumerate() {
            let of = |peer: &str, tunnel: &str| {
                told.learned.get(&(peer.to_owned(), tunnel.to_owned())).map(Vec::as_slice)
            };
            let own = Lane { number, count }.config(&told.whole, of);
            handle.configure(own, told.whole.private_key.clone());
        }
    }

    /// Whether peers are to be told to send elsewhere, if they can.
    pub fn standby(&self, standby: bool) {
        self.handles.iter().for_each(|handle| handle.standby(standby));
    }

    /// Ends all of them.
    pub fn stop(&self) {
        self.handles.iter().for_each(Handle::stop);
    }

    /// What all of them report together. Tunnels of further lanes come after the one they were learned from.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut whole = Report::default();
        for handle in self.handles.iter() {
            let Report { peers, drops, lost } = handle.report();
            whole.drops += drops;
            whole.lost += lost;
            for peer in peers {
                match whole.peers.iter_mut().find(|known| known.name == peer.name) {
                    Some(known) => {
                        known.traffic += peer.traffic;
                        known.tunnels.extend(peer.tunnels);
                    }
                    None => whole.peers.push(peer),
                }
            }
        }
        whole
    }

    /// How the peers are, as the first lane sees it, which has a tunnel to each of their gateways.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.handles.first().map(|first| first.report().peers).unwrap_or_default()
    }
}

fn learned(report: &Report) -> Learned {
    let tunnels = report.peers.iter().flat_map(|peer| peer.tunnels.iter().map(move |tunnel| (peer, tunnel)));
    let told = tunnels
        .filter_map(|(peer, tunnel)| Some(((peer.name.clone(), tunnel.name.clone()), tunnel.lanes.clone()?)));
    told.collect()
}
