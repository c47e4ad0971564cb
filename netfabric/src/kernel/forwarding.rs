//! Whether this host forwards packets at all, a family each.

use std::fs;
use std::io;
use std::path::Path;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const DEVICES: &str = "/proc/sys/net/ipv6/conf";

/// IPv4 and IPv6. What cannot be read is off: there is no IPv6 then.
pub(super) fn read() -> [bool; 2] {
    [IPV4, IPV6].map(|setting| fs::read_to_string(setting).is_ok_and(|text| text.trim() == "1"))
}

/// Turns forwarding of IPv6 on in the network namespace of a gateway's pod, and returns whether there is IPv6 here. Unlike IPv4,
/// it cannot be turned on for one device, nor over netlink; container runtimes leave `/proc/sys` writable to privileged
/// containers only.
///
/// The devices there are already stay hosts on their links: nothing is forwarded for who is there (the overlay's packets are
/// of IPv4 or for the pod itself). As routers they would take on the first address of the pod network (RFC 4291, section
/// 2.6.1), which is the one that a node answers to in the overlay, and its packets would end here.
///
/// # Errors
/// If the kernel does not take it.
pub fn forward_ipv6() -> io::Result<bool> {
    if !Path::new(IPV6).exists() {
        return Ok(false);
    }
    fs::write(IPV6, "1")?;
    for device in fs::read_dir(DEVICES)? {
        let device = device?;
        if device.file_name() != "all" && device.file_name() != "default" {
            fs::write(device.path().join("forwarding"), "0")?;
        }
    }
    Ok(true)
}
