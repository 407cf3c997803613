//! Ports for a new cluster on this machine.
//!
//! Not those that the kernel gives to whoever asks for any: somebody's connection would have one of them sooner or later, while its
//! server is down or not up yet.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

/// Below it are well-known ports.
const FIRST: u16 = 10_240;

/// A range with fewer ports than this is too crowded.
const ENOUGH: u16 = 1_024;

const ATTEMPTS: usize = 10_000;

/// Free ones on the loopback address, for UDP and for TCP, each another.
///
/// # Errors
/// When there are no more.
pub(super) fn free(count: usize) -> io::Result<Vec<SocketAddr>> {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let range = outside(&setting);
    // All are held until the last is chosen, so that no port is chosen twice.
    let mut held = Vec::new();
    for _ in 0..ATTEMPTS {
        if held.len() == count {
            break;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, any_of(&range)?));
        if let Ok(udp) = UdpSocket::bind(address)
            && let Ok(tcp) = TcpListener::bind(address)
        {
            held.push((address, udp, tcp));
        }
    }
    if held.len() < count {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("ports {} to {} are in use", range.start, range.end - 1),
        ));
    }
    Ok(held.into_iter().map(|(address, ..)| address).collect())
}

/// Ports that are not within what the kernel says that it gives away.
fn outside(setting: &str) -> Range<u16> {
    let mut bounds = setting.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    let (Some(low), Some(high)) = (bounds.next(), bounds.next()) else {
        return FIRST..32_768;
    };
    if low >= FIRST + ENOUGH {
        FIRST..low
    } else if high <= u16::MAX - ENOUGH {
        high + 1..u16::MAX
    } else {
        FIRST..u16::MAX
    }
}

fn any_of(range: &Range<u16>) -> io::Result<u16> {
    let random = getrandom::u32().map_err(|error| io::Error::other(format!("no randomness: {error}")))?;
    let width = u32::from(range.end - range.start);
    Ok(range.start + u16::try_from(random % width).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_not_those_that_the_kernel_gives_away() {
        assert_eq!(outside("32768\t60999\n"), 10_240..32_768);
        assert_eq!(outside("1024 60999"), 61_000..65_535);
        assert_eq!(outside("1024 65535"), 10_240..65_535);
        for broken in ["", "x y", "32768"] {
            assert_eq!(outside(broken), 10_240..32_768);
        }
        let ports = free(6).unwrap();
        let mut numbers: Vec<u16> = ports.iter().map(SocketAddr::port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 6);
        for address in ports {
            // A child that another test starts has copies of all sockets until it runs its program.
            let is_free = || UdpSocket::bind(address).is_ok();
            let waits = || std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(
                (0..200).any(|_| is_free() || {
                    waits();
                    false
                }),
                "{address} is held"
            );
        }
    }
}
