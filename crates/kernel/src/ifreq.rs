//! Questions about interfaces that the kernel answers without its lock on them (netdevice(7)).
//!
//! `RTM_GETLINK` takes the RTNL lock, for which it waits while anything changes an interface, whatever
//! namespace that is in: on a node with many pods that happens all the time. These `ioctl`s walk the
//! list of interfaces as RCU readers (`dev_ifsioc_locked`, `netdev_get_name` in `net/core`). They work
//! on sockets of every family.

use std::os::fd::{AsFd, BorrowedFd};

use causeway_types::IfName;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater};
use rustix::net::netdevice;

use crate::sock::Socket;

const GET_FLAGS: Opcode = libc::SIOCGIFFLAGS as Opcode;

/// `struct ifreq` (`linux/if.h`) as `SIOCGIFFLAGS` uses it.
#[repr(C, align(8))]
struct Flags {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Flags>() == size_of::<libc::ifreq>());

impl Socket {
    /// The index of an interface; `None` when there is none of this name, or the kernel does not say.
    pub(crate) fn index_of(&self, name: &IfName) -> Option<u32> {
        netdevice::name_to_index(self.as_fd(), name.as_str()).ok()
    }

    /// Whether some interface has this index. False also when the kernel does not say: it refuses to
    /// make another then.
    pub(crate) fn is_index_taken(&self, index: u32) -> bool {
        netdevice::index_to_name_inlined(self.as_fd(), index).is_ok()
    }

    /// Whether it is certain that no packets pass an interface: it is there, without `IFF_RUNNING`. With
    /// it nothing is certain.
    pub(crate) fn is_at_rest(&self, name: &IfName) -> bool {
        flags(self.as_fd(), name).is_ok_and(|flags| flags & libc::IFF_RUNNING as u16 == 0)
    }
}

fn flags(socket: BorrowedFd<'_>, name: &IfName) -> Result<u16, Errno> {
    let mut request = Flags { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    let bytes = name.as_str().as_bytes();
    request.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the kernel reads and writes one `struct ifreq` for `SIOCGIFFLAGS`; `Flags` has its size,
    // its alignment and its layout, and any bytes make one.
    #[allow(unsafe_code)]
    unsafe {
        rustix::ioctl::ioctl(socket, Updater::<GET_FLAGS, Flags>::new(&mut request))?;
    }
    Ok(request.flags)
}
