//! Records of TLS 1.3, sealed straight into the memory that they are sent from.
//!
//! By itself rustls copies plaintext into a record of its own, seals that, and copies it out: two copies and an allocation for each 16 KiB. Here it
//! only announces a record, by its number and length, and the record is sealed from where the plaintext lies into its place. Everything else stays
//! with rustls: keys and their updates, numbers and limits, alerts; what is not announced it seals as ever.

use std::cell::RefCell;
use std::ptr;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::{
    self, AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, UnboundKey,
};
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::crypto::cipher::{
    AeadKey, Iv, MessageDecrypter, MessageEncrypter, Nonce, OutboundOpaqueMessage, OutboundPlainMessage,
    PrefixedPayload, Tls13AeadAlgorithm, UnsupportedOperationError, make_tls13_aad,
};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls13CipherSuite,
};

use crate::Fault;

/// Type, version and length in front of a record (RFC 8446 §5.1).
const HEADER_BYTES: usize = 5;
/// What follows the plaintext of a record: its type, and the tag.
const TRAILER_BYTES_MAX: usize = 1 + MAX_TAG_LEN;
/// An announcement in place of a record's content: its number, and the length of its plaintext. No sealed record is as short.
const ANNOUNCEMENT_BYTES: usize = 8 + 4;
/// Records announced at a time.
const ANNOUNCED_MAX: usize = 64;

/// The plaintext that may be sealed at a time by [`Announcements`], if no record carries less than usual.
pub(crate) const PLAIN_BYTES_MAX: usize = ANNOUNCED_MAX * 16_384;
/// Bytes of that many announcements.
pub(crate) const ANNOUNCEMENTS_BYTES_MAX: usize = ANNOUNCED_MAX * (HEADER_BYTES + ANNOUNCEMENT_BYTES);

thread_local! {
    /// `Some` while records are announced on this thread, with who is to seal them.
    static ANNOUNCED: RefCell<Option<Option<Arc<Sealer>>>> = const { RefCell::new(None) };
}

/// The suites of TLS 1.3 that announce their records when they are asked to. They live as long as the process.
static SUITES: LazyLock<Box<[Tls13CipherSuite]>> =
    LazyLock::new(|| ALL_CIPHER_SUITES.iter().filter_map(|suite| announcing(suite.tls13()?)).collect());

fn announcing(plain: &'static Tls13CipherSuite) -> Option<Tls13CipherSuite> {
    let CipherSuiteCommon { suite, hash_provider, confidentiality_limit } = plain.common;
    let algorithm: &'static Algorithm = match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => &AES_128_GCM,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => &AES_256_GCM,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => &CHACHA20_POLY1305,
        _ => return None,
    };
    Some(Tls13CipherSuite {
        common: CipherSuiteCommon { suite, hash_provider, confidentiality_limit },
        hkdf_provider: plain.hkdf_provider,
        aead_alg: Box::leak(Box::new(Announcing { plain: plain.aead_alg, algorithm })),
        quic: None,
    })
}

/// The suite in place of one of the AWS-LC provider.
pub(crate) fn in_place_of(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let own = SUITES.iter().find(|own| own.common.suite == suite.suite());
    own.map_or(suite, SupportedCipherSuite::Tls13)
}

/// Whether records of this suite can be announced.
pub(crate) fn announces(suite: Option<SupportedCipherSuite>) -> bool {
    let Some(suite) = suite.and_then(|suite| suite.tls13()) else { return false };
    SUITES.iter().any(|own| ptr::eq(own, suite))
}

struct Announcing {
    plain: &'static dyn Tls13AeadAlgorithm,
    algorithm: &'static Algorithm,
}

impl Tls13AeadAlgorithm for Announcing {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        let key = UnboundKey::new(self.algorithm, key.as_ref()).expect("rustls makes keys of `key_len`");
        Box::new(Encrypter(Arc::new(Sealer { key: LessSafeKey::new(key), iv })))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.plain.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.plain.key_len()
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.plain.extract_keys(key, iv)
    }
}

/// One key of one direction.
struct Sealer {
    key: LessSafeKey,
    iv: Iv,
}

struct Encrypter(Arc<Sealer>);

impl MessageEncrypter for Encrypter {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, number: u64) -> Result<OutboundOpaqueMessage, Error> {
        let Encrypter(sealer) = self;
        let length = message.payload.len();
        let is_announced = message.typ == ContentType::ApplicationData
            && ANNOUNCED.with_borrow_mut(|announced| match announced {
                None => false,
                Some(by) => {
                    *by = Some(Arc::clone(sealer));
                    true
                }
            });
        let payload = if is_announced {
            let mut payload = PrefixedPayload::with_capacity(ANNOUNCEMENT_BYTES);
            payload.extend_from_slice(&number.to_be_bytes());
            payload.extend_from_slice(&u32::try_from(length).map_err(|_| Error::EncryptError)?.to_be_bytes());
            payload
        } else {
            let sealed_len = sealer.sealed_len(length);
            let mut payload = PrefixedPayload::with_capacity(sealed_len);
            payload.extend_from_chunks(&message.payload);
            payload.extend_from_slice(&[u8::from(message.typ)]);
            let aad = Aad::from(make_tls13_aad(sealed_len));
            sealer
                .key
                .seal_in_place_append_tag(sealer.nonce(number), aad, &mut payload)
                .map_err(|_| Error::EncryptError)?;
            payload
        };
        // The version of all such records (RFC 8446 §5.2).
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, length: usize) -> usize {
        let Encrypter(sealer) = self;
        // rustls asks before it seals or announces data, never else.
        if ANNOUNCED.with_borrow(Option::is_some) { ANNOUNCEMENT_BYTES } else { sealer.sealed_len(length) }
    }
}

impl Sealer {
    fn sealed_len(&self, length: usize) -> usize {
        length + 1 + self.key.algorithm().tag_len()
    }

    /// rustls gives each record of a key another number.
    fn nonce(&self, number: u64) -> aead::Nonce {
        aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, number).0)
    }

    /// Seals one record of data into the start of `out`; its length.
    fn seal(&self, number: u64, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let sealed_len = self.sealed_len(plain.len());
        let (header, out) = out.split_at_mut_checked(HEADER_BYTES)?;
        let (content, out) = out.split_at_mut_checked(plain.len())?;
        let trailer = out.get_mut(..sealed_len - plain.len())?;
        // The header is what is authenticated besides (RFC 8446 §5.2).
        let aad = make_tls13_aad(sealed_len);
        header.copy_from_slice(&aad);
        let kind = [u8::from(ContentType::ApplicationData)];
        self.key.seal_out_of_place_scatter(self.nonce(number), Aad::from(aad), plain, content, &kind, trailer).ok()?;
        Some(HEADER_BYTES + sealed_len)
    }
}

/// While there is one, records of data are announced on this thread instead of sealed.
pub(crate) struct Announcements(());

impl Announcements {
    /// From here on.
    pub(crate) fn begin() -> Announcements {
        ANNOUNCED.set(Some(None));
        Announcements(())
    }

    /// Seals into `out` what was announced of `plain` in `records`; what else is there stands where it stood among them. All of `plain` has to have
    /// been announced. Returns the bytes written.
    pub(crate) fn seal(self, records: &[u8], mut plain: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        let sealer = ANNOUNCED.take().flatten();
        let (mut rest, mut written) = (records, 0);
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let content_len = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let (content, after) = behind.split_at_checked(content_len).ok_or(Fault::Internal)?;
            let place = out.get_mut(written..).ok_or(Fault::Internal)?;
            written += match content.split_first_chunk::<8>() {
                Some((number, length)) if content_len == ANNOUNCEMENT_BYTES => {
                    let length = u32::from_be_bytes(length.try_into().map_err(|_| Fault::Internal)?) as usize;
                    let (part, left) = plain.split_at_checked(length).ok_or(Fault::Internal)?;
                    plain = left;
                    let sealer = sealer.as_deref().ok_or(Fault::Internal)?;
                    sealer.seal(u64::from_be_bytes(*number), part, place).ok_or(Fault::Internal)?
                }
                _ => {
                    let record = &rest[..HEADER_BYTES + content_len];
                    place.get_mut(..record.len()).ok_or(Fault::Internal)?.copy_from_slice(record);
                    record.len()
                }
            };
            rest = after;
        }
        if rest.is_empty() && plain.is_empty() { Ok(written) } else { Err(Fault::Internal) }
    }
}

impl Drop for Announcements {
    fn drop(&mut self) {
        ANNOUNCED.set(None);
    }
}

const _: () = assert!(TRAILER_BYTES_MAX > ANNOUNCEMENT_BYTES, "an announcement is told from a record by its length");
