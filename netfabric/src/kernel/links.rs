//! The overlay device, and settings of devices.

use super::message::{Attributes, Message, Reply, address, number};
use super::socket::{CREATE, EXCLUSIVE, Error, Netlink};
use crate::state::{DeviceSettings, Link, Mac};
use nix::errno::Errno;
use nix::libc;
use std::net::IpAddr;

/// Length of `struct ifinfomsg`.
pub(super) const HEADER: usize = 16;
/// `enum` of `linux/if_link.h`, as far as `libc` leaves it out.
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// Numbers of settings (`linux/ip.h`); in listings they are at these places, counted from one.
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
/// Address family of the attribute with IPv4 settings.
const AF_INET: u16 = 2;
const UP: u32 = libc::IFF_UP.cast_unsigned();

/// A device.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) settings: Option<DeviceSettings>,
    /// If it is a VXLAN device, what the overlay cares about.
    pub(super) vxlan: Option<Link>,
}

fn header(index: u32, flags: u32, change: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The device of a name.
pub(super) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Device>, Error> {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &header(0, 0, 0));
    message.put_text(libc::IFLA_IFNAME, name);
    one(netlink, message)
}

/// The device of an index.
pub(super) fn of_index(netlink: &mut Netlink, index: u32) -> Result<Option<Device>, Error> {
    one(netlink, Message::new(libc::RTM_GETLINK, 0, &header(index, 0, 0)))
}

fn one(netlink: &mut Netlink, message: Message) -> Result<Option<Device>, Error> {
    match netlink.get(message) {
        Ok(reply) => Ok(read(&reply)),
        Err(error) if error.is(&[Errno::ENODEV]) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(reply: &Reply) -> Option<Device> {
    let header = reply.header(HEADER)?;
    let attributes = reply.attributes(HEADER);
    let mtu = attributes.u32(libc::IFLA_MTU)?;
    let conf = attributes.inner(libc::IFLA_AF_SPEC).inner(AF_INET).get(IFLA_INET_CONF);
    let setting = |number_of: u16| {
        let at = usize::from(number_of - 1) * 4;
        conf.and_then(|conf| conf.get(at..at + 4)).map(number)
    };
    let settings = setting(IPV4_DEVCONF_FORWARDING).zip(setting(IPV4_DEVCONF_RP_FILTER));
    let link = attributes.inner(libc::IFLA_LINKINFO);
    let is_vxlan = link.text(libc::IFLA_INFO_KIND).as_deref() == Some("vxlan");
    let vxlan =
        is_vxlan.then(|| vxlan(attributes, link.inner(libc::IFLA_INFO_DATA), number(&header[8..]), mtu));
    Some(Device {
        index: number(&header[4..]),
        mtu,
        up: number(&header[8..]) & UP != 0,
        settings: settings
            .map(|(forwarding, rp_filter)| DeviceSettings { forwarding: forwarding != 0, rp_filter }),
        vxlan: vxlan.flatten(),
    })
}

fn vxlan(attributes: Attributes<'_>, data: Attributes<'_>, flags: u32, mtu: u32) -> Option<Link> {
    let local = data.get(IFLA_VXLAN_LOCAL).or_else(|| data.get(IFLA_VXLAN_LOCAL6)).and_then(address);
    let port = data.get(IFLA_VXLAN_PORT)?;
    Some(Link {
        name: attributes.text(libc::IFLA_IFNAME)?,
        vni: data.u32(IFLA_VXLAN_ID)?,
        port: u16::from_be_bytes(*port.first_chunk()?),
        // Without one, the kernel chooses: never what is wanted.
        local: local.unwrap_or(IpAddr::from([0; 4])),
        learning: data.get(IFLA_VXLAN_LEARNING).is_some_and(|value| value.first() == Some(&1)),
        mac: Mac(*attributes.get(libc::IFLA_ADDRESS)?.first_chunk()?),
        mtu,
        up: flags & UP != 0,
    })
}

pub(super) fn add(netlink: &mut Netlink, link: &Link) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &header(0, 0, UP));
    message
        .put_text(libc::IFLA_IFNAME, &link.name)
        .put(libc::IFLA_ADDRESS, &link.mac.0)
        .put_u32(libc::IFLA_MTU, link.mtu)
        .nest(libc::IFLA_LINKINFO, |info| {
            info.put(libc::IFLA_INFO_KIND, b"vxlan").nest(libc::IFLA_INFO_DATA, |data| {
                let local = if link.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                data.put_u32(IFLA_VXLAN_ID, link.vni)
                    .put_address(local, link.local)
                    .put(IFLA_VXLAN_PORT, &link.port.to_be_bytes())
                    .put(IFLA_VXLAN_LEARNING, &[u8::from(link.learning)]);
            });
        });
    netlink.change(message)?;
    let set = |flags, change| {
        let mut message = Message::new(libc::RTM_SETLINK, 0, &header(0, flags, change));
        message.put_text(libc::IFLA_IFNAME, &link.name);
        message
    };
    if link.local.is_ipv6() {
        // Before it is up, so that the kernel gives it no address, which would be of use only seconds later: it gets ours.
        let mut message = set(0, 0);
        message.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(super::family(link.local).into(), |settings| {
                settings.put(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        netlink.change(message)?;
    }
    netlink.change(set(if link.up { UP } else { 0 }, UP))
}

pub(super) fn change(netlink: &mut Netlink, index: u32, link: &Link) -> Result<(), Error> {
    let flags = if link.up { UP } else { 0 };
    let mut message = Message::new(libc::RTM_SETLINK, 0, &header(index, flags, UP));
    message.put(libc::IFLA_ADDRESS, &link.mac.0).put_u32(libc::IFLA_MTU, link.mtu);
    netlink.change(message)
}

pub(super) fn remove(netlink: &mut Netlink, index: u32) -> Result<(), Error> {
    netlink.change(Message::new(libc::RTM_DELLINK, 0, &header(index, 0, 0)))
}

/// Sets what is under `/proc/sys/net/ipv4/conf` for a device, without that file system, which containers cannot write to.
/// Forwarding is asked of the device by which a packet comes in, so that a gateway pod needs no system-wide setting.
pub(super) fn configure(netlink: &mut Netlink, index: u32, settings: DeviceSettings) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_SETLINK, 0, &header(index, 0, 0));
    message.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(AF_INET, |inet| {
            inet.nest(IFLA_INET_CONF, |conf| {
                conf.put_u32(IPV4_DEVCONF_FORWARDING, u32::from(settings.forwarding))
                    .put_u32(IPV4_DEVCONF_RP_FILTER, settings.rp_filter);
            });
        });
    });
    netlink.change(message)
}
