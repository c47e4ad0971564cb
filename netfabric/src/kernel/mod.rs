//! The kernel's side: reads what is there, takes the steps to what shall be, and tells when somebody else changes it.

mod addresses;
mod forwarding;
mod links;
mod message;
mod monitor;
mod neighbours;
mod nftables;
mod routes;
mod socket;

pub use forwarding::forward_ipv6;
pub use monitor::Monitor;
pub use socket::Error;

use crate::diff::Step;
use crate::state::{Observed, State};
use crate::topology::{Ends, Host, Settings};
use message::Message;
use nix::errno::Errno;
use nix::libc;
use socket::Netlink;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Paths whose MTU is asked for. They nearly always leave by the same device; gateways are few.
const PATHS_ASKED: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

/// Why the state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Netlink failed.
    #[error("{doing}: {error}")]
    Netlink {
        /// What was being done.
        doing: String,
        /// What the kernel says.
        error: Error,
    },
    /// A device of our name is no VXLAN device.
    #[error(
        "device {0} is somebody else's: it is no VXLAN device. Rename it, or choose another name with --overlay-device"
    )]
    ForeignDevice(String),
    /// What was done did not last.
    #[error("{0} has no lasting effect: something else on this host undoes it")]
    Contested(String),
}

/// Names and numbers of the devices that matter.
#[derive(Debug, Clone, Default)]
struct Devices {
    overlay: String,
    by_name: BTreeMap<String, u32>,
}

impl Devices {
    fn index(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    fn name(&self, index: u32) -> Option<&str> {
        self.by_name.iter().find(|(_, found)| **found == index).map(|(name, _)| name.as_str())
    }
}

/// Packets dropped, by chain. The kernel counts from zero whenever the table is written.
#[derive(Debug, Default)]
struct Dropped {
    new: BTreeMap<String, u64>,
    /// What was read last; none before the first time, when there may be counters of an earlier process.
    last: Option<BTreeMap<String, u64>>,
}

impl Dropped {
    fn read(&mut self, now: Option<&BTreeMap<String, u64>>) {
        let now = now.cloned().unwrap_or_default();
        if let Some(last) = &self.last {
            for (chain, count) in &now {
                let before = last.get(chain).copied().unwrap_or(0);
                // Less than before: somebody else has written it.
                let new = count.checked_sub(before).unwrap_or(*count);
                if new > 0 {
                    *self.new.entry(chain.clone()).or_default() += new;
                }
            }
        }
        self.last = Some(now);
    }

    fn began_anew(&mut self, written: bool) {
        if written {
            self.last = Some(BTreeMap::new());
        }
    }
}

/// Reads and changes the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    route: Netlink,
    netfilter: Netlink,
    settings: Settings,
    devices: Devices,
    dropped: Dropped,
}

impl Kernel {
    /// Opens the sockets.
    ///
    /// # Errors
    /// If the kernel has no netlink, or lacks what is needed since 4.20.
    pub fn open(settings: &Settings) -> Result<Self, KernelError> {
        let failed = |doing: &str, error| KernelError::Netlink { doing: doing.to_owned(), error };
        Ok(Self {
            route: Netlink::route().map_err(|error| failed("opening a socket for routes", error))?,
            netfilter: Netlink::netfilter()
                .map_err(|error| failed("opening a socket for nftables", error))?,
            settings: settings.clone(),
            devices: Devices { overlay: settings.overlay.clone(), by_name: BTreeMap::new() },
            dropped: Dropped::default(),
        })
    }

    /// Packets that each chain of the packet filter of ours has dropped since this was called last, as far as they were read.
    pub fn take_dropped(&mut self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.dropped.new)
    }

    /// Number of the overlay device, as last seen.
    #[must_use]
    pub fn overlay_index(&self) -> Option<u32> {
        self.devices.index(&self.settings.overlay)
    }

    /// What there is of ours.
    ///
    /// # Errors
    /// If it cannot be read, or if somebody else has a device of our name.
    pub fn observe(&mut self) -> Result<Observed, KernelError> {
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |error| KernelError::Netlink { doing, error }
        };
        let mut observed: Observed = State::default();
        self.devices.by_name.clear();
        let tunnel = links::find(&mut self.route, &self.settings.tunnel)
            .map_err(failed("reading the tunnel device"))?;
        let overlay = links::find(&mut self.route, &self.settings.overlay)
            .map_err(failed("reading the overlay device"))?;
        for (name, device) in [(&self.settings.tunnel, &tunnel), (&self.settings.overlay, &overlay)] {
            let Some(device) = device else { continue };
            self.devices.by_name.insert(name.clone(), device.index);
            observed.settings.extend(device.settings.map(|settings| (name.clone(), settings)));
        }
        if let Some(device) = overlay {
            let Some(link) = device.vxlan else {
                return Err(KernelError::ForeignDevice(self.settings.overlay.clone()));
            };
            observed.link = Some(link);
            let index = device.index;
            observed.addresses =
                addresses::list(&mut self.route, index).map_err(failed("listing addresses"))?;
            observed.neighbours =
                neighbours::list(&mut self.route, index).map_err(failed("listing neighbours"))?;
            observed.forwarding = neighbours::forwarding(&mut self.route, index)
                .map_err(failed("listing the forwarding database"))?;
        }
        observed.routes = routes::list(&mut self.route, &self.devices).map_err(failed("listing routes"))?;
        observed.rules = routes::rules(&mut self.route).map_err(failed("listing rules"))?;
        let filter = nftables::read(&mut self.netfilter).map_err(failed("reading the nftables table"))?;
        self.dropped.read(filter.as_ref().map(|found| &found.dropped));
        observed.filter = filter.map(|found| found.outline);
        Ok(observed)
    }

    /// What this host says of itself.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn host(&mut self, ends: Option<&Ends>) -> Result<Host, KernelError> {
        let tunnel = links::find(&mut self.route, &self.settings.tunnel);
        let path_mtu = ends.map_or(Ok(None), |ends| path_mtu(&mut self.route, ends));
        let (tunnel, path_mtu) = tunnel
            .and_then(|tunnel| Ok((tunnel, path_mtu?)))
            .map_err(|error| KernelError::Netlink { doing: "reading devices and paths".to_owned(), error })?;
        let tunnel = tunnel.is_some_and(|device| device.up);
        Ok(Host { path_mtu, tunnel, forwarding: forwarding::read(), dead: BTreeSet::new() })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn take(&mut self, step: &Step) -> Result<(), KernelError> {
        let (route, overlay) = (&mut self.route, self.devices.index(&self.settings.overlay));
        // An index of zero is no device: the kernel refuses it.
        let index = overlay.unwrap_or(0);
        let taken = match step {
            Step::SetFilter(table) => {
                let set = nftables::set(&mut self.netfilter, table);
                self.dropped.began_anew(set.is_ok());
                set
            }
            Step::RemoveFilter => nftables::remove(&mut self.netfilter),
            Step::AddLink(link) => links::add(route, link).and_then(|()| {
                let made = links::find(route, &link.name)?;
                self.devices.by_name.extend(made.map(|device| (link.name.clone(), device.index)));
                Ok(())
            }),
            Step::ChangeLink(link) => links::change(route, index, link),
            Step::RemoveLink(_) => gone(links::remove(route, index), &[Errno::ENODEV]),
            Step::Configure(device, settings) => {
                links::configure(route, self.devices.index(device).unwrap_or(0), *settings)
            }
            Step::AddAddress(address) => addresses::add(route, index, *address),
            Step::RemoveAddress(address) => addresses::remove(route, index, *address),
            Step::SetNeighbour(address, mac) => neighbours::set(route, index, *address, *mac),
            Step::RemoveNeighbour(address) => neighbours::remove(route, index, *address),
            Step::SetForwarding(mac, address) => neighbours::set_forwarding(route, index, *mac, *address),
            Step::RemoveForwarding(mac, address) => {
                neighbours::remove_forwarding(route, index, *mac, *address)
            }
            Step::SetRoute(key, wanted) => routes::set(route, &self.devices, *key, wanted),
            Step::RemoveRoute(key) => routes::remove(route, *key),
            Step::AddRule(rule) => routes::add_rule(route, rule),
            Step::RemoveRule(rule) => routes::remove_rule(route, rule),
        };
        taken.map_err(|error| KernelError::Netlink { doing: format!("{step:?}"), error })
    }
}

/// The smallest MTU among the device that has the own address and those by which the other ends are reached.
fn path_mtu(netlink: &mut Netlink, ends: &Ends) -> Result<Option<u32>, Error> {
    let Some(mut smallest) = reached_by(netlink, ends.local)?.filter(|path| path.local) else {
        return Ok(None);
    };
    for remote in ends.remotes.iter().take(PATHS_ASKED) {
        // No route: nothing is sent there, and its MTU does not matter.
        if let Some(path) = reached_by(netlink, *remote)?.filter(|path| !path.local) {
            smallest.mtu = smallest.mtu.min(path.mtu);
        }
    }
    Ok(Some(smallest.mtu))
}

/// How an address is reached.
struct Path {
    /// It is one of this host.
    local: bool,
    mtu: u32,
}

fn reached_by(netlink: &mut Netlink, address: IpAddr) -> Result<Option<Path>, Error> {
    // The device of a local address is the loopback device, unless the route in the table of local addresses is asked for.
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(address);
    header[1] = if address.is_ipv4() { 32 } else { 128 };
    header[8..12].copy_from_slice(&libc::RTM_F_FIB_MATCH.to_ne_bytes());
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &header);
    request.put_address(libc::RTA_DST, address);
    let none = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];
    let reply = match netlink.get(request) {
        Ok(reply) => reply,
        Err(error) if error.is(&none) => return Ok(None),
        Err(error) => return Err(error),
    };
    let local = reply.header(ROUTE_HEADER).is_some_and(|header| header[7] == libc::RTN_LOCAL);
    let attributes = reply.attributes(ROUTE_HEADER);
    let own = message::Attributes(attributes.get(libc::RTA_METRICS).unwrap_or_default()).u32(RTAX_MTU);
    let Some(index) = attributes.u32(libc::RTA_OIF) else { return Ok(None) };
    let device = links::of_index(netlink, index)?;
    Ok(device.map(|device| Path { local, mtu: own.map_or(device.mtu, |mtu| mtu.min(device.mtu)) }))
}

/// MTU of a route, within its metrics.
const RTAX_MTU: u16 = 2;

/// Number of the address family.
fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// What was to be removed (or made) may be gone (or there) already.
fn gone(result: Result<(), Error>, reasons: &[Errno]) -> Result<(), Error> {
    result.or_else(|error| if error.is(reasons) { Ok(()) } else { Err(error) })
}

/// What there is none of is an empty listing.
fn or_nothing<T: Default>(result: Result<T, Error>, reasons: &[Errno]) -> Result<T, Error> {
    result.or_else(|error| if error.is(reasons) { Ok(T::default()) } else { Err(error) })
}
