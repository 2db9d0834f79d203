//! What an invitation is, and what a member that joins and the region that invited it say to one another.
//!
//! Decides the bytes and their bounds. The token carries a secret: it has no `Debug` that shows it, is printed once and is never on a command
//! line. The conversation is one question and one answer over TLS, which the joining side trusts by the CA's fingerprint in the token:
//!
//! ```text
//!  token     "parhelion-join-2." | base64url of bincode of Token
//!  message   length u32 | bincode of JoinRequest, or of JoinAnswer          at most JOIN_BYTES_MAX
//! ```

use crate::base::{ClusterName, RegionName, UnixMicros};
use crate::io::tls::Subject;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// No message is longer.
pub const JOIN_BYTES_MAX: usize = 64 << 10;
const TOKEN_HEAD: &str = "parhelion-join-2.";
/// Of any version.
const TOKEN_HEADS: &str = "parhelion-join-";
const TOKEN_CHARS_MAX: usize = 4096;
/// Each message has so long.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// 256 random bits.
#[derive(Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who is invited.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Guest {
    Region {
        name: RegionName,
    },
    Witness {
        name: RegionName,
        /// Its failure domain, as whoever invites calls it.
        zone: Option<String>,
    },
}

impl Guest {
    #[must_use]
    pub fn name(&self) -> &RegionName {
        match self {
            Guest::Region { name } | Guest::Witness { name, .. } => name,
        }
    }

    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Guest::Region { .. } => Subject::Region,
            Guest::Witness { .. } => Subject::Witness,
        }
    }

    /// What it is, in a sentence.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Guest::Region { .. } => "region",
            Guest::Witness { .. } => "witness",
        }
    }

    /// The command that invites it.
    #[must_use]
    pub fn invited_by(&self) -> String {
        format!("parhelion invite --{} {}", self.kind(), self.name())
    }
}

/// An invitation. Good once, for one name, until it ends.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Token {
    pub cluster: ClusterName,
    pub guest: Guest,
    /// Who invites, and where it listens for that: `host:port`, TCP.
    pub inviter: RegionName,
    pub addr: String,
    /// SHA-256 of the CA's certificate.
    pub ca_sha256: [u8; 32],
    pub secret: Secret,
    /// On the inviter's wall clock; for people.
    pub expires_at: UnixMicros,
}

/// Why text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is no invitation: it should begin with {TOKEN_HEAD}; take all of what parhelion invite printed")]
    NoToken,
    #[error("this invitation was made by another version of parhelion; use the same one on both machines")]
    Version,
    #[error("the invitation is damaged ({0}); take all of what parhelion invite printed")]
    Damaged(String),
}

impl Token {
    /// As it is printed.
    #[must_use]
    pub fn reveal(&self) -> String {
        let bytes = bincode::encode_to_vec(self, bincode::config::standard()).expect("BUG: a token of names and numbers encodes");
        format!("{TOKEN_HEAD}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// # Errors
    /// [`TokenError`]
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_CHARS_MAX {
            return Err(TokenError::NoToken);
        }
        let other = if text.starts_with(TOKEN_HEADS) { TokenError::Version } else { TokenError::NoToken };
        let body = text.strip_prefix(TOKEN_HEAD).ok_or(other)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|e| TokenError::Damaged(e.to_string()))?;
        let config = bincode::config::standard().with_limit::<TOKEN_CHARS_MAX>();
        let (token, read) = bincode::decode_from_slice(&bytes, config).map_err(|e| TokenError::Damaged(e.to_string()))?;
        if read != bytes.len() {
            return Err(TokenError::Damaged("something follows its end".into()));
        }
        Ok(token)
    }
}

/// The one question.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct JoinRequest {
    pub name: RegionName,
    pub secret: Secret,
    /// PKCS #10, DER. The key that it is for never leaves its machine.
    pub csr: Vec<u8>,
    /// Where the regions reach this one, `host:port`, UDP.
    pub addr: String,
    pub version: String,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum JoinAnswer {
    Welcome(Box<Welcome>),
    /// A sentence that says what to do.
    Refused(String),
    WelcomeWitness(Box<WitnessWelcome>),
}

/// Everything that a new region's machine needs.
#[derive(Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Welcome {
    pub certificate_pem: String,
    pub ca_pem: String,
    pub founder: RegionName,
    /// The others, as the inviter reaches them.
    pub members: Vec<(RegionName, String)>,
    pub witness: Option<(RegionName, String)>,
    pub sql_user: String,
    pub sql_database: String,
    pub sql_password: String,
    pub segment_pages: u32,
    pub groups: u32,
    pub lease_ms: u64,
    pub renew_ms: u64,
    pub drain_ms: u64,
}

/// Everything that a new witness's machine needs. Nothing of SQL is.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct WitnessWelcome {
    pub certificate_pem: String,
    pub ca_pem: String,
    /// The regions, as the inviter reaches them.
    pub members: Vec<(RegionName, String)>,
    pub lease_ms: u64,
    pub renew_ms: u64,
    pub drain_ms: u64,
}

impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome").field("members", &self.members).finish_non_exhaustive()
    }
}

/// # Errors
/// A sentence.
pub async fn send<T: bincode::Encode>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), String> {
    let body = bincode::encode_to_vec(message, bincode::config::standard()).expect("BUG: a message of names and bytes encodes");
    assert!(body.len() <= JOIN_BYTES_MAX, "BUG: a message of {} bytes", body.len());
    let length = u32::try_from(body.len()).expect("BUG: bounded");
    let sending = async {
        stream.write_all(&length.to_le_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await
    };
    match tokio::time::timeout(MESSAGE_TIMEOUT, sending).await {
        Ok(sent) => sent.map_err(|e| e.to_string()),
        Err(_) => Err(format!("it is not taken within {} s", MESSAGE_TIMEOUT.as_secs())),
    }
}

/// # Errors
/// A sentence: nothing came, or what came is no such message.
pub async fn receive<T: bincode::Decode<()>>(stream: &mut (impl AsyncRead + Unpin), within: Duration) -> Result<T, String> {
    let receiving = async {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.map_err(|e| e.to_string())?;
        let length = u32::from_le_bytes(length) as usize;
        if length > JOIN_BYTES_MAX {
            return Err(format!("a message of {length} bytes is beyond the limit of {JOIN_BYTES_MAX}"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(|e| e.to_string())?;
        let config = bincode::config::standard().with_limit::<{ 2 * JOIN_BYTES_MAX }>();
        let (message, read) = bincode::decode_from_slice(&body, config).map_err(|e| e.to_string())?;
        if read == body.len() { Ok(message) } else { Err("something follows its end".to_owned()) }
    };
    tokio::time::timeout(within, receiving).await.unwrap_or_else(|_| Err(format!("nothing whole came within {} s", within.as_secs())))
}

/// What the inviter gives a question.
pub const REQUEST_WITHIN: Duration = MESSAGE_TIMEOUT;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            cluster: ClusterName::new("sun").unwrap(),
            guest: Guest::Region { name: RegionName::new("ap-south").unwrap() },
            inviter: RegionName::new("us-east").unwrap(),
            addr: "127.0.0.1:7404".into(),
            ca_sha256: [7; 32],
            secret: Secret([0x5e; 32]),
            expires_at: UnixMicros(5),
        }
    }

    #[test]
    fn a_token_survives_being_copied_and_nothing_shows_its_secret() {
        let text = token().reveal();
        assert_eq!(Token::parse(&format!("  {text}\n")), Ok(token()));
        assert!(format!("{:?}", token()).contains("Secret(..)"));
        assert_eq!(Token::parse("hello"), Err(TokenError::NoToken));
        assert!(matches!(Token::parse(&text[..text.len() - 3]), Err(TokenError::Damaged(_))));
        assert!(matches!(Token::parse(&format!("{text}AAAA")), Err(TokenError::Damaged(_))));
        assert_eq!(Token::parse(&text.replace("join-2", "join-1")), Err(TokenError::Version));
        let guest = Guest::Witness { name: RegionName::new("w2").unwrap(), zone: Some("c".into()) };
        let witness = Token { guest, ..token() };
        assert_eq!(Token::parse(&witness.reveal()), Ok(witness));
    }

    #[tokio::test]
    async fn messages_are_bounded_before_anything_is_allocated() {
        let request = JoinRequest {
            name: token().guest.name().clone(),
            secret: token().secret,
            csr: vec![1; 300],
            addr: "a:1".into(),
            version: "0".into(),
        };
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        send(&mut near, &request).await.unwrap();
        assert_eq!(receive::<JoinRequest>(&mut far, REQUEST_WITHIN).await, Ok(request));
        near.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(receive::<JoinRequest>(&mut far, REQUEST_WITHIN).await.unwrap_err().contains("beyond the limit"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Token::parse(&text);
            let _ = Token::parse(&format!("{TOKEN_HEAD}{}", URL_SAFE_NO_PAD.encode(bytes)));
        }

        #[test]
        fn no_answer_makes_the_joining_side_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0usize..200, cut in 0usize..80) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let read = |body: &[u8]| {
                let framed = [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat();
                drop(runtime.block_on(receive::<JoinAnswer>(&mut &framed[..], REQUEST_WITHIN)));
            };
            read(&bytes);
            let members = vec![(token().inviter, "us:7400".to_owned())];
            let (certificate_pem, ca_pem) = ("a certificate".to_owned(), "a CA".to_owned());
            let welcome = WitnessWelcome { certificate_pem, ca_pem, members, lease_ms: 6000, renew_ms: 1500, drain_ms: 5000 };
            let answer = JoinAnswer::WelcomeWitness(Box::new(welcome));
            let mut body = bincode::encode_to_vec(&answer, bincode::config::standard()).unwrap();
            let at = flip % body.len();
            body[at] ^= 0x55;
            body.truncate(body.len().saturating_sub(cut));
            read(&body);
        }
    }
}
