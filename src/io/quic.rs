//! The QUIC endpoint of one region: one UDP socket, sized for the path, with mutual TLS 1.3.
//!
//! Decides: how the socket and the transport are sized, and of which kind a refused connection is. Never decides what a
//! connected peer may do ([`crate::io::link`]). Driven by the region process, and by commands that ask one question.
//!
//! Three things a default endpoint gets wrong for us: one long stream with a big window dies of reassembly gaps under
//! loss (so streams stay short and their window small, and only the connection's windows are big); the defaults fill
//! 100 Mbit/s x 100 ms and no more; and the kernel's default UDP buffers drop what the windows allow.

use super::congestion::FloorFactory;
use crate::base::{ClusterName, RegionName};
use crate::io::link::LinkLog;
use crate::io::tls::{self, Material, PeerIdentity};
use parking_lot::RwLock;
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, TransportErrorCode, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Of one connection, over all its streams. Bounds memory, and fills 2.5 Gbit/s at 200 ms.
const WINDOW_BYTES: u32 = 64 << 20;
const UNI_STREAMS_MAX: u32 = 1024;
const BIDI_STREAMS_MAX: u32 = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Silence after which a connection is given up. The close packet is sent once and may be lost: it detects nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between regions; only until the first measurement.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// The same within a region, where a copy that is silent is soon missed.
const NEAR_KEEP_ALIVE: Duration = Duration::from_secs(1);
pub const NEAR_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Control links: who is gone must be missed well within a lease.
const CONTROL_KEEP_ALIVE: Duration = Duration::from_millis(400);
pub const CONTROL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// A member sends a message in a stream of its own, and few of them.
const CONTROL_STREAMS_MAX: u32 = 64;
const CONTROL_WINDOW_BYTES: u32 = 4 << 20;
const NEAR_INITIAL_RTT: Duration = Duration::from_millis(10);
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES_MAX: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL_MAX: u64 = 4 << 20;

/// The congestion controller of every connection of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// The default. Collapses with random loss on long paths.
    #[default]
    Cubic,
    /// Bears loss, and overruns shallow queues; experimental in the library.
    Bbr,
    NewReno,
}

/// What can be set about the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSettings {
    pub congestion: Congestion,
    /// Asked of the kernel for each direction.
    pub udp_buffer_bytes: usize,
}

impl Default for QuicSettings {
    fn default() -> QuicSettings {
        QuicSettings { congestion: Congestion::Cubic, udp_buffer_bytes: 4 << 20 }
    }
}

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    #[error(
        "the UDP address {addr} is in use: another process listens there, perhaps this region itself; stop it (`ss -ulpn` names it) or change listen.quic"
    )]
    InUse { addr: SocketAddr },
    #[error("the UDP address {addr} is not one of this machine's: change listen.quic")]
    NotHere { addr: SocketAddr },
    #[error("the UDP address {addr} cannot be opened: {source}")]
    Socket { addr: SocketAddr, source: std::io::Error },
    #[error("the TLS library cannot serve QUIC: {0}")]
    Tls(String),
}

/// Why a connection between regions was refused, whichever side noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    WrongCa,
    WrongCluster,
    /// A member's certificate, but not that of the member who was dialled.
    WrongRegion,
    UnknownRegion,
    /// Expired, or not valid yet.
    Expired,
    NoCertificate,
    /// Another protocol or version of it, or streams that make no sense.
    Protocol,
    /// The handshake failed in some other way.
    Handshake,
    /// Copies serve only the process of their own region, and a region takes only copies of its own.
    ForeignCopies,
    /// A witness asked for something else than a control link, or was asked for it.
    WrongRole,
    /// A region that was taken out of the global cluster.
    Removed,
}

impl RefusalKind {
    pub const ALL: [RefusalKind; 11] = [
        RefusalKind::WrongCa,
        RefusalKind::WrongCluster,
        RefusalKind::WrongRegion,
        RefusalKind::UnknownRegion,
        RefusalKind::Expired,
        RefusalKind::NoCertificate,
        RefusalKind::Protocol,
        RefusalKind::Handshake,
        RefusalKind::ForeignCopies,
        RefusalKind::WrongRole,
        RefusalKind::Removed,
    ];

    /// As a label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            RefusalKind::WrongCa => "wrong_ca",
            RefusalKind::WrongCluster => "wrong_cluster",
            RefusalKind::WrongRegion => "wrong_region",
            RefusalKind::UnknownRegion => "unknown_region",
            RefusalKind::Expired => "expired",
            RefusalKind::NoCertificate => "no_certificate",
            RefusalKind::Protocol => "protocol",
            RefusalKind::Handshake => "handshake",
            RefusalKind::ForeignCopies => "foreign_copies",
            RefusalKind::WrongRole => "wrong_role",
            RefusalKind::Removed => "removed",
        }
    }

    /// What it means and what to do.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            RefusalKind::WrongCa => {
                "the certificates come from different CAs; all regions of a global cluster need certificates made with the same ca.pem"
            }
            RefusalKind::WrongCluster => "the certificate belongs to another global cluster; check `cluster` and [tls] dir on both sides",
            RefusalKind::WrongRegion => "another region answered at that address; check the [[member]] addresses",
            RefusalKind::UnknownRegion => {
                "the certificate names no member of this global cluster; invite it (parhelion invite), or, before the members were ever changed by a command, add it as a [[member]] on both sides"
            }
            RefusalKind::Expired => "a certificate is not valid now; run `parhelion certs --renew`, and check both clocks",
            RefusalKind::NoCertificate => "no certificate was shown; only regions of this global cluster can connect",
            RefusalKind::Protocol => "the other side speaks another protocol or another version of it",
            RefusalKind::Handshake => "the handshake failed",
            RefusalKind::ForeignCopies => {
                "copies serve only the process of their own region, and a region takes only copies of its own; check `region`, [copies] and [tls] dir on both sides"
            }
            RefusalKind::Removed => {
                "that region was taken out of the global cluster; to bring it back: parhelion invite --region REGION at a member, then parhelion join there"
            }
            RefusalKind::WrongRole => "a witness votes and does nothing else: it has no log, no pages and no SQL, and gets none",
        }
    }

    /// The code an application close carries, so that the other side names the same kind.
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(0x100 + self as u32)
    }

    pub(crate) fn of_code(code: VarInt) -> Option<RefusalKind> {
        RefusalKind::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// Refused connections since the start of the process, by kind. Cheap to read at any time.
#[derive(Debug, Default)]
pub struct RefusalCounters {
    counts: [AtomicU64; RefusalKind::ALL.len()],
}

impl RefusalCounters {
    #[must_use]
    pub fn get(&self, kind: RefusalKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, kind: RefusalKind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

const NOT_REFUSED: [TransportErrorCode; 3] =
    [TransportErrorCode::NO_ERROR, TransportErrorCode::APPLICATION_ERROR, TransportErrorCode::CONNECTION_REFUSED];

/// Of which kind the failure of a connection attempt is. `None`: no refusal, just silence or an ordinary end.
///
/// The transport keeps only the text of a TLS error, and of the other side's refusal nothing but text arrives; so the text
/// of the TLS library is what we have. The tests pin it.
pub(crate) fn classify(error: &ConnectionError, cluster: &ClusterName) -> Option<RefusalKind> {
    let text = match error {
        ConnectionError::TransportError(e) => e.to_string(),
        // It gave up during the handshake, or has no room now: nobody was refused for what they are.
        ConnectionError::ConnectionClosed(e) if NOT_REFUSED.contains(&e.error_code) => return None,
        ConnectionError::ConnectionClosed(e) => e.to_string(),
        ConnectionError::ApplicationClosed(e) => return RefusalKind::of_code(e.error_code),
        ConnectionError::VersionMismatch => return Some(RefusalKind::Protocol),
        ConnectionError::Reset | ConnectionError::TimedOut | ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => {
            return None;
        }
    };
    Some(if text.contains("certificate expired") || text.contains("certificate not valid yet") {
        RefusalKind::Expired
    } else if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        // Two CAs made for one cluster name have the same subject: then only the signature tells them apart.
        RefusalKind::WrongCa
    } else if let Some((_, presented)) = text.split_once("is only valid for ") {
        if presented.contains(&format!(".{cluster}.")) { RefusalKind::WrongRegion } else { RefusalKind::WrongCluster }
    } else if text.contains("peer sent no certificates") {
        RefusalKind::NoCertificate
    } else if text.contains("known protocol") || text.contains("NoApplicationProtocol") || text.contains("incompatible") {
        RefusalKind::Protocol
    } else {
        RefusalKind::Handshake
    })
}

/// Text that came over the network, fit for a log line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Who is let in, by name.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    pub regions: Vec<RegionName>,
    /// Taken out: they are told.
    pub removed: Vec<RegionName>,
    /// Let in for a control link.
    pub witness: Option<RegionName>,
    pub witnesses_removed: Vec<RegionName>,
}

/// The endpoint of a region. Cheap to clone.
#[derive(Clone)]
pub struct Quic {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) material: Arc<Material>,
    admitted: Arc<RwLock<Admitted>>,
    client: quinn::ClientConfig,
    /// As `client`, for control links.
    control_client: quinn::ClientConfig,
    refusals: Arc<RefusalCounters>,
    link_log: Arc<LinkLog>,
}

impl Quic {
    /// Opens `addr` for connections in both directions. `members` are all regions of the global cluster, this one included.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`QuicError`]: the address is in use or not ours.
    pub fn bind(addr: SocketAddr, material: Arc<Material>, members: &[RegionName], settings: &QuicSettings) -> Result<Quic, QuicError> {
        Quic::listen(addr, material, members, settings, &Arc::new(transport(settings.congestion)), tls::ALPN)
    }

    /// The endpoint of a process that holds copies of `region` for that region's process.
    ///
    /// # Errors
    /// [`QuicError`]
    pub fn bind_copies(addr: SocketAddr, material: Arc<Material>) -> Result<Quic, QuicError> {
        let members = [material.region().clone()];
        Quic::listen(addr, material, &members, &QuicSettings::default(), &Arc::new(near_transport()), tls::COPY_ALPN)
    }

    fn listen(
        addr: SocketAddr,
        material: Arc<Material>,
        members: &[RegionName],
        settings: &QuicSettings,
        transport: &Arc<TransportConfig>,
        alpn: &[u8],
    ) -> Result<Quic, QuicError> {
        let mut crypto = rustls::ServerConfig::clone(&material.quic_server());
        crypto.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicServerConfig::try_from(crypto).map_err(|e| QuicError::Tls(e.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::clone(transport))
            .migration(false)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BYTES_MAX)
            .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);
        // With a secret that outlives the process, a region that was killed and restarted answers the packets of its
        // old connections with a reset, and the peers need not wait for their idle timeout.
        let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, material.reset_secret());
        let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
        endpoint.cid_generator(|| Box::new(RandomCids));
        Quic::open(addr, material, members, settings, transport, endpoint, Some(server), alpn)
    }

    /// An endpoint of this region that only dials its copies on other machines; refusals are counted with the region's.
    ///
    /// # Errors
    /// [`QuicError`]
    pub fn copies_dialler(&self) -> Result<Quic, QuicError> {
        let any: SocketAddr = match self.local_addr() {
            Ok(addr) if addr.is_ipv6() => ([0u16; 8], 0).into(),
            _ => ([0, 0, 0, 0], 0).into(),
        };
        let (settings, transport) = (QuicSettings::default(), Arc::new(near_transport()));
        let material = Arc::clone(&self.material);
        let mut quic = Quic::open(any, material, &[], &settings, &transport, EndpointConfig::default(), None, tls::COPY_ALPN)?;
        quic.refusals = Arc::clone(&self.refusals);
        Ok(quic)
    }

    /// An endpoint that only dials, for a command: any free port, next to the region process.
    ///
    /// # Errors
    /// [`QuicError`]
    pub fn dialler(for_addr: SocketAddr, material: Arc<Material>) -> Result<Quic, QuicError> {
        let settings = QuicSettings { udp_buffer_bytes: 256 << 10, ..QuicSettings::default() };
        let any: SocketAddr = if for_addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        Quic::open(any, material, &[], &settings, &Arc::new(transport(settings.congestion)), EndpointConfig::default(), None, tls::ALPN)
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where all of it comes together")]
    fn open(
        addr: SocketAddr,
        material: Arc<Material>,
        members: &[RegionName],
        settings: &QuicSettings,
        transport: &Arc<TransportConfig>,
        endpoint: EndpointConfig,
        server: Option<quinn::ServerConfig>,
        alpn: &[u8],
    ) -> Result<Quic, QuicError> {
        let mut crypto = rustls::ClientConfig::clone(&material.quic_client());
        crypto.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicClientConfig::try_from(crypto).map_err(|e| QuicError::Tls(e.to_string()))?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        let mut control_client = client.clone();
        client.transport_config(Arc::clone(transport));
        control_client.transport_config(Arc::new(control_transport()));
        let socket = socket(addr, settings.udp_buffer_bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => QuicError::InUse { addr },
            std::io::ErrorKind::AddrNotAvailable => QuicError::NotHere { addr },
            _ => QuicError::Socket { addr, source },
        })?;
        let endpoint =
            quinn::Endpoint::new(endpoint, server, socket, Arc::new(TokioRuntime)).map_err(|source| QuicError::Socket { addr, source })?;
        let admitted = Arc::new(RwLock::new(Admitted { regions: members.to_vec(), ..Admitted::default() }));
        Ok(Quic { endpoint, material, admitted, client, control_client, refusals: Arc::default(), link_log: Arc::default() })
    }

    /// The witness of the global cluster, if it has one, is let in as well: for a control link.
    #[must_use]
    pub fn with_witness(self, witness: Option<RegionName>) -> Quic {
        self.admitted.write().witness = witness;
        self
    }

    /// Who is let in from here on; this member always is, for its own commands. Those that were taken out are refused as such.
    pub fn set_members(&self, who: &Admitted) {
        let own = self.region();
        let mut who = who.clone();
        match self.material.subject() {
            tls::Subject::Witness => who.witness = Some(own.clone()),
            tls::Subject::Region if !who.regions.contains(own) => who.regions.push(own.clone()),
            tls::Subject::Region | tls::Subject::Copies => {}
        }
        who.removed.retain(|r| r != own);
        who.witnesses_removed.retain(|r| r != own);
        *self.admitted.write() = who;
    }

    /// The address in use, with the real port when 0 was asked for.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// With what this endpoint shows who it is.
    #[must_use]
    pub fn material(&self) -> &Arc<Material> {
        &self.material
    }

    #[must_use]
    pub fn region(&self) -> &RegionName {
        self.material.region()
    }

    #[must_use]
    pub fn refusals(&self) -> &Arc<RefusalCounters> {
        &self.refusals
    }

    /// Who was linked with this process.
    #[must_use]
    pub fn link_log(&self) -> &Arc<LinkLog> {
        &self.link_log
    }

    /// Says goodbye to all peers and waits a moment for the packets to leave.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        // Peers need not confirm: an end that is not heard is noticed by silence.
        let _ = tokio::time::timeout(Duration::from_millis(50), self.endpoint.wait_idle()).await;
    }

    pub(crate) fn connect(
        &self,
        subject: tls::Subject,
        region: &RegionName,
        addr: SocketAddr,
    ) -> Result<quinn::Connecting, quinn::ConnectError> {
        self.endpoint.connect_with(self.client.clone(), addr, &subject.dns_name(self.material.cluster(), region))
    }

    /// Dials for a control link: only `subject` of that name is taken.
    pub(crate) fn connect_control(
        &self,
        subject: tls::Subject,
        name: &RegionName,
        addr: SocketAddr,
    ) -> Result<quinn::Connecting, quinn::ConnectError> {
        self.endpoint.connect_with(self.control_client.clone(), addr, &subject.dns_name(self.material.cluster(), name))
    }

    /// Dials a process that holds copies of this region: no other certificate is taken.
    pub(crate) fn connect_copies(&self, addr: SocketAddr) -> Result<quinn::Connecting, quinn::ConnectError> {
        self.endpoint.connect_with(self.client.clone(), addr, &tls::copies_dns_name(self.material.cluster(), self.material.region()))
    }

    /// Which member is at the other end. The handshake has verified its certificate against our CA.
    pub(crate) fn identify(&self, connection: &quinn::Connection) -> Result<(RegionName, tls::Subject), (RefusalKind, String)> {
        let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
        let Some(leaf) = chain.as_deref().and_then(|chain| chain.first()) else {
            return Err((RefusalKind::NoCertificate, "no certificate".to_owned()));
        };
        let admitted = self.admitted.read();
        let cluster = self.material.cluster();
        match tls::identify(leaf, cluster, &admitted.regions, admitted.witness.as_ref()) {
            PeerIdentity::Region(region) => Ok((region, tls::Subject::Region)),
            PeerIdentity::Witness(witness) => Ok((witness, tls::Subject::Witness)),
            PeerIdentity::WrongCluster(name) => Err((RefusalKind::WrongCluster, name)),
            PeerIdentity::UnknownRegion(name) => {
                let region = admitted.removed.iter().any(|r| tls::dns_name(cluster, r) == name);
                let was = region || admitted.witnesses_removed.iter().any(|w| tls::witness_dns_name(cluster, w) == name);
                Err((if was { RefusalKind::Removed } else { RefusalKind::UnknownRegion }, name))
            }
        }
    }

    /// One refusal: counted, and one line in the log.
    pub(crate) fn refuse(&self, kind: RefusalKind, peer: SocketAddr, detail: &str) {
        self.refusals.count(kind);
        let detail = printable(detail);
        tracing::warn!(%peer, kind = kind.label(), detail, "connection refused: {}", kind.explanation());
    }
}

fn transport(congestion: Congestion) -> TransportConfig {
    let controller: Arc<dyn ControllerFactory + Send + Sync> = match congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
    };
    let mut transport = TransportConfig::default();
    // stream_receive_window stays at its default of 1.25 MB: more than one batch, too little for 1024 gaps.
    transport
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(u64::from(WINDOW_BYTES))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("BUG: ten seconds fit")))
        .initial_rtt(INITIAL_RTT)
        // Batches leave in the order of the log: the oldest is the one the other side waits for.
        .send_fairness(false)
        .congestion_controller_factory(Arc::new(FloorFactory { inner: controller }));
    transport
}

/// Within a region: whoever is silent is soon missed.
fn near_transport() -> TransportConfig {
    let mut transport = transport(Congestion::Cubic);
    transport
        .keep_alive_interval(Some(NEAR_KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(NEAR_IDLE_TIMEOUT).expect("BUG: five seconds fit")))
        .initial_rtt(NEAR_INITIAL_RTT)
        // Streams of several copies share the connection: a backlog of one must not hold up the others.
        .send_fairness(true);
    transport
}

/// Few and small messages, and a peer that is gone is soon missed. The other end has the transport of all connections; the shorter of two
/// idle timeouts holds for both ends, and the pings of this one are answered.
fn control_transport() -> TransportConfig {
    let mut transport = transport(Congestion::Cubic);
    transport
        .keep_alive_interval(Some(CONTROL_KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(CONTROL_IDLE_TIMEOUT).expect("BUG: two seconds fit")))
        .receive_window(VarInt::from_u32(CONTROL_WINDOW_BYTES))
        .send_window(u64::from(CONTROL_WINDOW_BYTES))
        .max_concurrent_uni_streams(VarInt::from_u32(CONTROL_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        // A lost message must not hold up the newer ones, nor they it.
        .send_fairness(true);
    transport
}

fn socket(addr: SocketAddr, buffer_bytes: usize) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // A refused size is not an error: the kernel takes what its limit allows, and we say so below.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    let sizes = [("net.core.rmem_max", socket.recv_buffer_size()?), ("net.core.wmem_max", socket.send_buffer_size()?)];
    for (setting, got) in sizes {
        // Linux reports twice what it grants.
        let granted_bytes = if cfg!(target_os = "linux") { got / 2 } else { got };
        if granted_bytes < buffer_bytes {
            tracing::warn!(
                wanted_bytes = buffer_bytes,
                granted_bytes,
                "the kernel clamps the UDP buffer and shipping over long paths will be slow; run: sysctl -w {setting}={buffer_bytes}"
            );
        }
    }
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Random connection ids that any incarnation of the region takes for its own, so that it can reset those of the last one.
struct RandomCids;

const CID_BYTES: usize = 8;

impl quinn::ConnectionIdGenerator for RandomCids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut id = [0; CID_BYTES];
        aws_lc_rs::rand::fill(&mut id).expect("BUG: the system's generator of randomness is always there");
        quinn::ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(error_code: TransportErrorCode, reason: &str) -> Option<RefusalKind> {
        let close = quinn::ConnectionClose { error_code, frame_type: None, reason: reason.to_owned().into() };
        classify(&ConnectionError::ConnectionClosed(close), &ClusterName::new("sun").unwrap())
    }

    #[test]
    fn a_peer_that_gives_up_is_not_a_refusal() {
        assert_eq!(closed(TransportErrorCode::APPLICATION_ERROR, ""), None);
        assert_eq!(closed(TransportErrorCode::CONNECTION_REFUSED, ""), None);
        assert_eq!(classify(&ConnectionError::TimedOut, &ClusterName::new("sun").unwrap()), None);
        assert_eq!(closed(TransportErrorCode::crypto(40), "something new"), Some(RefusalKind::Handshake));
        assert_eq!(closed(TransportErrorCode::crypto(42), "is only valid for DnsName(\"eu.sun.x\")"), Some(RefusalKind::WrongRegion));
        assert_eq!(closed(TransportErrorCode::crypto(42), "is only valid for DnsName(\"eu.moon.x\")"), Some(RefusalKind::WrongCluster));
    }

    #[test]
    fn every_kind_has_its_own_code_and_label() {
        for kind in RefusalKind::ALL {
            assert_eq!(RefusalKind::of_code(kind.code()), Some(kind));
            assert_eq!(RefusalKind::ALL.iter().filter(|k| k.label() == kind.label()).count(), 1);
        }
        assert_eq!(RefusalKind::of_code(VarInt::from_u32(0)), None);
    }

    #[test]
    fn what_came_over_the_network_cannot_draw_on_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a[2Jbc");
        assert_eq!(printable(&"x".repeat(1000)).len(), 300);
    }
}
