//! Who gets in: SCRAM-SHA-256 against a stored verifier.
//!
//! Decides only whether a password is right. The password itself is never kept. An unknown user goes through the same
//! exchange against a verifier that nothing matches, and is told the same as after a wrong password. Driven by the login;
//! the cryptography is `pgwire`'s and aws-lc-rs's.

use super::wire::{Stop, Wire};
use crate::head::sql::SqlError;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramSecret, ScramServerAuth, gen_salted_password};
use pgwire::messages::startup::Authentication;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

const MECHANISM: &str = "SCRAM-SHA-256";
const KEY_BYTES: usize = 32;
const ITERATIONS_MAX: usize = 1_000_000;

/// What a server keeps of a password: enough to check it, not enough to log in with.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    iterations: usize,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl std::fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramVerifier(..)")
    }
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("BUG: the system's random number generator gives no bytes");
    bytes
}

impl ScramVerifier {
    /// The verifier of a password, with a new random salt.
    #[must_use]
    pub fn generate(password: &str) -> ScramVerifier {
        let salt = random::<16>().to_vec();
        let salted = gen_salted_password(password, &salt, SCRAM_ITERATIONS);
        let salted = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref()).as_ref().to_vec();
        let server_key = hmac::sign(&salted, b"Server Key").as_ref().to_vec();
        ScramVerifier { iterations: SCRAM_ITERATIONS, salt, stored_key, server_key }
    }

    /// PostgreSQL's own text form, as in `pg_authid.rolpassword`: `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let b64 = |b: &[u8]| STANDARD.encode(b);
        format!("{MECHANISM}${}:{}${}:{}", self.iterations, b64(&self.salt), b64(&self.stored_key), b64(&self.server_key))
    }

    /// The verifier in PostgreSQL's text form; `None` when it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<ScramVerifier> {
        let mut parts = text.trim().split('$');
        if parts.next()? != MECHANISM {
            return None;
        }
        let (iterations, salt) = parts.next()?.split_once(':')?;
        let (stored, server) = parts.next()?.split_once(':')?;
        let unb64 = |s: &str| STANDARD.decode(s).ok();
        let v = ScramVerifier {
            iterations: iterations.parse().ok()?,
            salt: unb64(salt)?,
            stored_key: unb64(stored)?,
            server_key: unb64(server)?,
        };
        let sound = (1..=ITERATIONS_MAX).contains(&v.iterations) && v.stored_key.len() == KEY_BYTES && v.server_key.len() == KEY_BYTES;
        (parts.next().is_none() && !v.salt.is_empty() && sound).then_some(v)
    }

    /// A verifier that no password matches, always the same for the same name, so that asking twice tells nothing.
    fn for_unknown(user: &str, server_secret: &[u8]) -> ScramVerifier {
        let key = hmac::Key::new(hmac::HMAC_SHA256, server_secret);
        let salt = hmac::sign(&key, user.as_bytes()).as_ref()[..16].to_vec();
        ScramVerifier {
            iterations: SCRAM_ITERATIONS,
            salt,
            stored_key: random::<KEY_BYTES>().to_vec(),
            server_key: random::<KEY_BYTES>().to_vec(),
        }
    }

    fn secret(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations,
            stored_key: self.stored_key.clone(),
            server_key: self.server_key.clone(),
        }
    }
}

/// Runs the exchange up to the server's final message; `Ok` means the client proved that it knows the password.
pub async fn authenticate(wire: &mut Wire, user: &str, known: Option<&ScramVerifier>, server_secret: &[u8]) -> Result<(), Stop> {
    let refused = || Stop::Fatal(SqlError::new("28P01", format!("password authentication failed for user \"{user}\"")));
    let protocol = |what: String| Stop::Fatal(SqlError::new("08P01", what));

    wire.put(&PgWireBackendMessage::Authentication(Authentication::SASL(vec![MECHANISM.to_owned()])))?;
    wire.flush().await?;
    let body = password_message(wire).await?;
    let first = client_first(&body).ok_or_else(|| protocol("malformed SASL initial response".into()))?;
    let verifier = known.cloned().unwrap_or_else(|| ScramVerifier::for_unknown(user, server_secret));
    let (challenge, waiting) = ScramServerAuth::new()
        .on_client_first_message_with_secret(first, verifier.secret())
        .map_err(|_| protocol("malformed SCRAM message".into()))?;
    wire.put(&PgWireBackendMessage::Authentication(Authentication::SASLContinue(challenge.into())))?;
    wire.flush().await?;
    let body = password_message(wire).await?;
    // Whatever is wrong with the proof, the client learns only that it was not the right one.
    let done = waiting.on_client_final_message(&body).map_err(|_| refused())?;
    if known.is_none() {
        return Err(refused());
    }
    wire.put(&PgWireBackendMessage::Authentication(Authentication::SASLFinal(done.into())))
}

async fn password_message(wire: &mut Wire) -> Result<Vec<u8>, Stop> {
    match wire.next().await? {
        PgWireFrontendMessage::PasswordMessageFamily(message) => match message {
            pgwire::messages::startup::PasswordMessageFamily::Raw(body) => Ok(body.to_vec()),
            _ => Err(Stop::Gone),
        },
        PgWireFrontendMessage::Terminate(_) => Err(Stop::Gone),
        _ => Err(Stop::Fatal(SqlError::new("08P01", "expected SASL response"))),
    }
}

/// The client-first-message in a SASLInitialResponse for our mechanism.
fn client_first(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(MECHANISM.as_bytes())?.strip_prefix(&[0])?;
    let (length, data) = rest.split_at_checked(4)?;
    let length = usize::try_from(i32::from_be_bytes(length.try_into().ok()?)).ok()?;
    (data.len() == length).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_has_postgres_text_form() {
        let v = ScramVerifier::generate("secret");
        let text = v.to_text();
        assert!(text.starts_with("SCRAM-SHA-256$4096:"), "{text}");
        assert_eq!(ScramVerifier::parse(&text), Some(v.clone()));
        assert_ne!(ScramVerifier::generate("secret"), v, "the salt is random");
        for bad in ["", "secret", "SCRAM-SHA-256$0:QQ==$QQ==:QQ==", "SCRAM-SHA-256$4096:QQ==$QQ==:QQ==", &format!("{text}$x")] {
            assert_eq!(ScramVerifier::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_unknown_user_is_always_shown_the_same_salt() {
        let salt = |user| ScramVerifier::for_unknown(user, b"server").salt;
        assert_eq!(salt("mallory"), salt("mallory"));
        assert_ne!(salt("mallory"), salt("eve"));
    }
}
