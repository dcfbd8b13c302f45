//! Addresses of machines, one or a whole network of them.

use std::net::IpAddr;

/// A network: an address, and how many of its bits all machines in it share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads `192.0.2.1`, `10.0.0.0/8`, `::1`, `fd00::/8`. `None` for anything else, and for an address that has bits beside
    /// the network's: one of the two was not meant.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
        };
        let network = Self { address, bits };
        (bits <= most && network.prefix(address) == Some(number(address))).then_some(network)
    }

    /// Whether a machine is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.prefix(address)
            .is_some_and(|prefix| prefix == number(self.address))
    }

    /// The bits of an address of the same kind that count.
    fn prefix(&self, address: IpAddr) -> Option<u128> {
        if address.is_ipv4() != self.address.is_ipv4() {
            return None;
        }
        let width: u32 = if address.is_ipv4() { 32 } else { 128 };
        let dropped = width.saturating_sub(self.bits.into());
        let number = number(address);
        Some(
            number
                .checked_shr(dropped)
                .unwrap_or(0)
                .checked_shl(dropped)
                .unwrap_or(0),
        )
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => u32::from(four).into(),
        IpAddr::V6(six) => six.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_machines_that_share_its_bits() {
        for (network, inside, outside) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "fd00::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("192.0.2.128/25", "192.0.2.129", "192.0.2.127"),
        ] {
            let found = Network::parse(network).expect(network);
            let address = |text: &str| text.parse().expect("an address");
            assert!(found.contains(address(inside)), "{network} {inside}");
            assert!(!found.contains(address(outside)), "{network} {outside}");
        }
        for wrong in [
            "",
            "/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "localhost",
            "10.0.0.0/8/8",
            "fe80::1/64",
        ] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }
}
