//! A UDP socket that moves bursts with one system call: large buffers, segmentation offload, fallbacks where the kernel
//! has none. Decides nothing about packets; [`super::relay`] owns and drives it.

use super::NetemError;
use quinn_udp::{EcnCodepoint, Transmit, UdpSocketState};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

const SOCKET_BUFFER_BYTES: usize = 4 << 20;
pub(super) const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// A burst handed to the kernel stays below the largest IP packet.
pub(super) const BURST_BYTES_MAX: usize = 65_000;

/// A UDP socket with its offload state.
pub(super) struct Port {
    pub(super) socket: UdpSocket,
    pub(super) state: UdpSocketState,
}

impl Port {
    pub(super) fn bind(ip: IpAddr, port: u16) -> Result<Port, NetemError> {
        let address = SocketAddr::new(ip, port);
        let open = || -> io::Result<Port> {
            let socket = UdpSocket::bind(address)?;
            // The kernel clamps these to its own limits; smaller buffers only mean that large bursts lose packets.
            let raw = socket2::SockRef::from(&socket);
            raw.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
            raw.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
            let state = UdpSocketState::new((&socket).into())?;
            Ok(Port { socket, state })
        };
        open().map_err(|source| NetemError::Socket { address, source })
    }

    pub(super) fn address(&self) -> Result<SocketAddr, NetemError> {
        self.socket.local_addr().map_err(NetemError::Start)
    }

    /// Sends `bytes` cut at every `stride`, in as few calls as the kernel allows; the packets and bytes that it took.
    pub(super) fn send(&self, to: SocketAddr, ecn: Option<EcnCodepoint>, bytes: &[u8], stride: usize) -> (usize, usize) {
        let stride = stride.max(1);
        let (mut packets, mut taken) = (0, 0);
        let mut rest = bytes;
        loop {
            let at_once = self.state.max_gso_segments().min(BURST_BYTES_MAX / stride).max(1);
            let (now, later) = rest.split_at(rest.len().min(at_once * stride));
            let transmit = Transmit { destination: to, ecn, contents: now, segment_size: Some(stride), src_ip: None };
            match self.state.try_send((&self.socket).into(), &transmit) {
                Ok(()) => {
                    packets += packets_in(now.len(), stride);
                    taken += now.len();
                }
                // The kernel just refused segmentation: once more, packet by packet.
                Err(_) if at_once > 1 && self.state.max_gso_segments() == 1 => continue,
                Err(_) => {}
            }
            rest = later;
            if rest.is_empty() {
                return (packets, taken);
            }
        }
    }
}

/// An empty datagram is one packet.
pub(super) fn packets_in(bytes: usize, stride: usize) -> usize {
    bytes.div_ceil(stride.max(1)).max(1)
}
