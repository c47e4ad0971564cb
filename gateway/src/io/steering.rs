//! Which of several sockets with one address gets a datagram: a classic BPF program in the kernel
//! (`SO_ATTACH_REUSEPORT_CBPF`), which needs no privilege.

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::AsFd;

/// Where the index of the receiver begins: in responses, and in all other messages. In initiations there is that of the
/// sender, which says nothing: they are handed over by whoever gets them.
const RESPONSE_INDEX: u32 = 8;
const INDEX: u32 = 4;
const RESPONSE: u32 = 2;

/// Puts each datagram into the socket of the lane that its first index byte stands for (see `Lane::of_index`). Bytes that
/// are not there count as 0.
pub(super) fn attach(socket: &impl AsFd, lanes: usize) -> io::Result<()> {
    let lanes = u32::try_from(lanes).map_err(io::Error::other)?;
    let code = |parts: u32| u16::try_from(parts).unwrap_or_default();
    let step = |parts, k| sock_filter { code: code(parts), jt: 0, jf: 0, k };
    let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let modulo = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
    let mut program = [
        step(load, 0),
        // If it is a response, the next two steps; else, the two after them.
        sock_filter { code: equal, jt: 0, jf: 2, k: RESPONSE },
        step(load, RESPONSE_INDEX),
        step(libc::BPF_JMP | libc::BPF_JA, 1),
        step(load, INDEX),
        step(modulo, lanes),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}
