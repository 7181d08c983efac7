//! How many connections each client address has open.
//!
//! One address must not be able to take all places of a server. An IPv6 client owns a whole /64 at least, so that is what counts
//! as one address there. Used by src/server.rs, which closes a connection that gets no place.

use dashmap::DashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The open connections by address; holds only addresses that have some.
#[derive(Debug)]
pub(crate) struct Peers {
    max_per_address: u32,
    open: DashMap<IpAddr, u32>,
}

/// A connection's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place {
    peers: Arc<Peers>,
    address: IpAddr,
}

impl Peers {
    pub(crate) fn new(max_per_address: u32) -> Arc<Self> {
        Arc::new(Self { max_per_address, open: DashMap::new() })
    }

    /// A place for one more connection from `address`; `None` when it has all it may have.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network_of(address);
        let mut open = self.open.entry(address).or_insert(0);
        // An entry that was just made has room: the limit is at least 1.
        if *open >= self.max_per_address {
            return None;
        }
        *open += 1;
        Some(Place { peers: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut open) = self.peers.open.get_mut(&self.address) {
            *open -= 1;
        }
        self.peers.open.remove_if(&self.address, |_, open| *open == 0);
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_places_and_gives_them_back() {
        let peers = Peers::new(2);
        let enter = |address: &str| peers.enter(address.parse().unwrap());
        let first = enter("10.0.0.1").unwrap();
        let _second = enter("::ffff:10.0.0.1").unwrap();
        assert!(enter("10.0.0.1").is_none());
        let other = enter("10.0.0.2").unwrap();
        drop(first);
        assert!(enter("10.0.0.1").is_some());
        drop(other);
        assert_eq!(peers.open.len(), 1, "addresses without connections are forgotten");
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let peers = Peers::new(1);
        let _first = peers.enter("2001:db8:1:2::1".parse().unwrap()).unwrap();
        assert!(peers.enter("2001:db8:1:2:ffff::2".parse().unwrap()).is_none());
        assert!(peers.enter("2001:db8:1:3::1".parse().unwrap()).is_some());
    }
}
