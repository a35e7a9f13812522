//! Checks that a body is the packet that its headers and its subject promise.

use relay::trace::packet::{PacketHeader, Packets};

/// Returns the header of the packet that a body consists of; an error says what is wrong with it.
pub(super) fn check(bytes: &[u8], cpu: u32, number: u64) -> Result<PacketHeader, String> {
    let mut packets = Packets::new(bytes);
    let packet = match packets.next() {
        Some(Ok(packet)) => packet,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("it is empty".to_owned()),
    };
    if packets.next().is_some() {
        return Err("it has more than one packet".to_owned());
    }
    let header = packet.header;
    if header.cpu != cpu {
        return Err(format!("its packet is of cpu{}", header.cpu));
    }
    if header.number != number {
        return Err(format!("its packet has the number {}", header.number));
    }
    Ok(header)
}
