//! From model and files to contexts, at a start and at reloads; and who is told about certificates that end.

use std::path::PathBuf;
use std::sync::Arc;
use std::{env, fs, process};

use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertifiedIssuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    SerialNumber, date_time_ymd,
};
use towpath_config::model::{ClientAuthorities, ClientCertificate, Model, Resumption, ServiceTls as Tls, VerifyServer};
use towpath_core::compile;
use towpath_core::health::HealthBoard;
use towpath_core::http::{HttpMaterial, HttpSecret};
use towpath_core::registry::Registry;
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, RealServerId, ServiceId};
use towpath_tls::{
    ClientContext, ClientSettings, Connection, MinVersion, Provider, RECORD_BYTES_MAX, ServerVerification, Step,
};

use super::fixtures::{certificate_files, ended_tls};
use super::*;
use crate::events::{EventKind, Tone};

/// Files of an operator, in a folder of their own.
struct Files {
    folder: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

impl Files {
    fn new(test: &str) -> Files {
        let folder = env::temp_dir().join(format!("towpath-tls-{}-{test}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A self-signed certificate with its key, valid until the first day of `year`.
    fn certificate(&self, name: &str, year: i32) -> PathBuf {
        let mut params = CertificateParams::new(vec!["mail.example.com".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        self.write(name, key.serialize_pem() + &certificate.pem())
    }
}

/// Two services with two servers each, which end TLS.
fn model(files: &Files, resumption: Resumption) -> Model {
    let service = |name: &str, vip: u8| {
        format!(
            "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.{vip}\"\nports = [443]\n\
             [[service.server]]\nname = \"one\"\naddress = \"192.0.2.11\"\n\
             [[service.server]]\nname = \"two\"\naddress = \"192.0.2.12\"\n"
        )
    };
    let checked = towpath_config::check("test.toml", &(service("owa", 1) + &service("ecp", 2)));
    let mut model = checked.model.unwrap();
    for service in &mut model.services {
        service.tls = Tls::Ended(Box::new(ended_tls(files.path("mail.pem"), resumption)));
    }
    model
}

fn ended(model: &mut Model, service: usize) -> &mut towpath_config::model::EndedTls {
    match &mut model.services[service].tls {
        Tls::Ended(ended) => ended,
        Tls::PassThrough(_) => panic!("the fixture ends TLS"),
    }
}

/// The contexts of `model`, after those of `before`.
fn load(model: &Model, before: &TlsMaterial) -> (TlsMaterial, TlsContexts) {
    let material = TlsMaterial::load(model, before).unwrap();
    let (mut registry, mut book) = (Registry::new(), SnatBook::new(SnatLimits::default()));
    compile::checks(model, &mut registry).unwrap();
    let steering = Arc::new(SteeringTable::even(1));
    let snapshot = compile::compile(
        model,
        &mut registry,
        &HealthBoard::new(),
        &mut book,
        steering,
        &HttpMaterial::new(HttpSecret::new([7; 16])),
        Generation(1),
    )
    .unwrap();
    let contexts = material.contexts(&registry, &snapshot);
    (material, contexts)
}

fn keeps_sessions() -> ClientContext {
    let settings = ClientSettings {
        provider: Provider::default(),
        min_version: MinVersion::Tls12,
        ciphers: towpath_tls::CipherPolicy::Intermediate,
        post_quantum: false,
        verification: ServerVerification::None,
        server_name: Some("mail.example.com".to_owned()),
        identity: None,
        sessions_max: 4,
    };
    ClientContext::new(&settings, None).unwrap()
}

/// Both ends after a handshake and a word from the server.
fn shake(service: &ServiceTls, client: &ClientContext) -> (Connection, Connection) {
    let mut client = client.connect(None, None, "192.0.2.1".parse().unwrap()).unwrap();
    let mut server = service.clients.accept().unwrap();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    loop {
        let client = client.handshake(&mut to_client, &mut to_server).unwrap();
        if server.handshake(&mut to_server, &mut to_client).unwrap() == Step::Complete && client == Step::Complete {
            break;
        }
    }
    // The ticket comes behind the handshake, with what is said first.
    to_client.append(&mut server.take_reply());
    let received = 0..to_client.len();
    client.open(&mut to_client, received).unwrap();
    (server, client)
}

#[test]
fn each_service_and_server_gets_its_context() {
    let files = Files::new("contexts");
    files.certificate("mail.pem", 2100);
    let mut model = model(&files, Resumption::Tickets);
    ended(&mut model, 1).re_encrypt = true;
    let group = model.services[1].group;
    model.groups[group].servers[0].re_encrypt = Some(false);
    let (material, contexts) = load(&model, &TlsMaterial::default());
    let service = |id| contexts.service(ServiceId(id)).unwrap();
    let servers = |id: u16| {
        let towards = |server| service(id).towards(RealServerId(server));
        (0..4).filter_map(towards).count()
    };
    assert_eq!(servers(0), 0, "it goes on in the clear");
    assert_eq!(servers(1), 1, "one of its servers says otherwise");
    assert_eq!(service(0).handshake_timeout_ms, 10_000);
    assert_eq!(material.certificates_of("owa")[0].names(), ["mail.example.com"]);
    assert!(contexts.service(ServiceId(2)).is_none());

    let mut plain = model.clone();
    plain.services.iter_mut().for_each(|service| service.tls = Tls::PassThrough(Default::default()));
    let (_, none) = load(&plain, &material);
    assert!(none.service(ServiceId(0)).is_none());
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_service_and_key() {
    let files = Files::new("errors");
    files.certificate("mail.pem", 2100);
    let mut model = model(&files, Resumption::Tickets);
    ended(&mut model, 0).certificates.push(certificate_files(files.path("gone.pem")));
    let ca = files.write("empty.pem", "nothing");
    ended(&mut model, 1).client_certificate = ClientCertificate::Require(ClientAuthorities { ca, crl: None });
    let told = |model: &Model| TlsMaterial::load(model, &TlsMaterial::default()).unwrap_err().to_string();
    let errors = told(&model);
    assert!(errors.contains("service `owa`: tls.certificate: ") && errors.contains("gone.pem"), "{errors}");
    assert!(errors.contains("service `ecp`: tls.client_ca: ") && errors.contains("no certificate"), "{errors}");

    let certificate = files.path("mail.pem");
    let both = ended(&mut model, 1);
    both.client_certificate =
        ClientCertificate::Request(ClientAuthorities { ca: certificate.clone(), crl: Some(certificate.clone()) });
    ended(&mut model, 0).certificates.truncate(1);
    assert!(told(&model).contains("service `ecp`: tls.client_crl: "), "{}", told(&model));
    let both = ended(&mut model, 1);
    both.client_certificate = ClientCertificate::None;
    both.certificates[0].staple = Some(certificate);
    assert!(told(&model).contains("service `ecp`: tls.certificate.staple: "), "{}", told(&model));
    let both = ended(&mut model, 1);
    both.certificates[0].staple = None;
    both.re_encrypt = true;
    both.servers.verify = VerifyServer::Ca(files.path("gone.pem"));
    assert!(told(&model).contains("service `ecp`: tls.server_ca: "), "{}", told(&model));
    ended(&mut model, 1).re_encrypt = false;

    for (secret, part) in [(&[1; 8][..], "8 bytes are no ticket secret"), (&[1; 4096], "larger than")] {
        model.tls.ticket_key_file = Some(files.write("secret", secret));
        let errors = told(&model);
        assert!(errors.contains("tls.ticket_key_file: ") && errors.contains(part), "{errors}");
    }
}

#[test]
fn a_reload_shows_the_new_certificate_and_leaves_connections_and_sessions_alone() {
    let files = Files::new("reload");
    for resumption in [Resumption::Tickets, Resumption::Cache] {
        files.certificate("mail.pem", 2100);
        let model = model(&files, resumption);
        let (material, contexts) = load(&model, &TlsMaterial::default());
        let client = keeps_sessions();
        let service = Arc::clone(contexts.service(ServiceId(0)).unwrap());
        let (mut server, mut there) = shake(&service, &client);
        assert!(!server.is_resumed());
        let before = there.peer_certificates().unwrap()[0].clone();

        files.certificate("mail.pem", 2101);
        let (_, contexts) = load(&model, &material);
        let renewed = contexts.service(ServiceId(0)).unwrap();
        let (_, fresh) = shake(renewed, &keeps_sessions());
        assert_ne!(fresh.peer_certificates().unwrap()[0], before, "{resumption:?}");
        let (again, _) = shake(renewed, &client);
        assert!(again.is_resumed(), "{resumption:?}");
        let (elsewhere, _) = shake(contexts.service(ServiceId(1)).unwrap(), &client);
        assert!(!elsewhere.is_resumed(), "a session of one service at another");

        // The connection from before still speaks.
        // Plaintext goes to the front, so there has to be room before the record.
        let mut record = vec![0; RECORD_BYTES_MAX + 1024];
        let sealed = server.seal(&mut Vec::new(), b"still here", &mut record[RECORD_BYTES_MAX..]).unwrap();
        let opened = there.open(&mut record, RECORD_BYTES_MAX..RECORD_BYTES_MAX + sealed).unwrap();
        assert_eq!(&record[..opened.plain], b"still here");
    }
}

#[test]
fn a_new_secret_takes_the_tickets_of_the_one_before() {
    let files = Files::new("secret");
    files.certificate("mail.pem", 2100);
    let mut model = model(&files, Resumption::Tickets);
    model.tls.ticket_key_file = Some(files.write("secret", [1; 48]));
    let (material, contexts) = load(&model, &TlsMaterial::default());
    let client = keeps_sessions();
    shake(contexts.service(ServiceId(0)).unwrap(), &client);

    // Another machine with the same file.
    let (_, elsewhere) = load(&model, &TlsMaterial::default());
    assert!(shake(elsewhere.service(ServiceId(0)).unwrap(), &client).0.is_resumed());

    files.write("secret", [2; 48]);
    let (material, changed) = load(&model, &material);
    assert!(shake(changed.service(ServiceId(0)).unwrap(), &client).0.is_resumed());
    let (_, unchanged) = load(&model, &material);
    assert!(shake(unchanged.service(ServiceId(0)).unwrap(), &client).0.is_resumed());
}

#[test]
fn somebody_is_told_in_time_once_and_again_when_it_is_renewed() {
    const DAY_S: i64 = 86_400;
    let files = Files::new("expiry");
    files.certificate("mail.pem", 2100);
    let model = model(&files, Resumption::Off);
    let material = TlsMaterial::load(&model, &TlsMaterial::default()).unwrap();
    let end_s = material.certificates_of("owa")[0].not_after_s();
    let mut watch = ExpiryWatch::default();
    fn of_owa(material: &TlsMaterial) -> impl Iterator<Item = (Option<&str>, usize, &towpath_tls::Identity)> {
        let all = material.certificates().filter(|(service, ..)| *service == "owa");
        all.map(|(service, place, identity)| (Some(service), place, identity))
    }
    let mut told = |material: &TlsMaterial, now_s| {
        let events = watch.turn(of_owa(material), material.dated().map(|(service, file)| (Some(service), file)), now_s);
        assert!(events.iter().all(|(_, event)| event.kind == EventKind::Certificate));
        events.iter().map(|(tone, event)| (*tone, event.line())).collect::<Vec<_>>()
    };
    let mut one = |now_s, from: &str, to: &str, left: &str| {
        let line = format!("certificate for mail.example.com of owa: {from} → {to}: {left}; put a new one");
        let lines = told(&material, now_s);
        assert!(matches!(&lines[..], [(Tone::Warn, told)] if told.starts_with(&line)), "{line}: {lines:?}");
        assert!(told(&material, now_s + 1).is_empty());
    };
    one(end_s - 30 * DAY_S, "valid", "ends within 30 days", "30 days left");
    one(end_s - 7 * DAY_S, "ends within 30 days", "ends within 7 days", "7 days left");
    one(end_s - 7200, "ends within 7 days", "ends within a day", "2 hours left");
    one(end_s + 60, "ends within a day", "expired", "for 1 minute");
    files.certificate("mail.pem", 2101);
    let renewed = TlsMaterial::load(&model, &material).unwrap();
    let lines = told(&renewed, end_s + 60);
    assert!(matches!(&lines[..], [(Tone::Info, told)] if told.contains("expired → valid: ")), "{lines:?}");
    let status = certificate_status(&renewed.certificates_of("owa")[0], end_s);
    assert_eq!((status.names.len(), status.seconds_left), (1, status.not_after_unix_seconds - end_s));
    // That of control.listen is no service's.
    let own = &material.certificates_of("owa")[0];
    let events = ExpiryWatch::default().turn([(None, 0, &**own)].into_iter(), std::iter::empty(), end_s + 60);
    let [(Tone::Warn, event)] = &events[..] else { panic!("{} events", events.len()) };
    let line = event.line();
    assert!(line.starts_with("certificate of control.listen for mail.example.com: valid → expired: "), "{line}");
    assert!(line.ends_with("the file of control.certificate and reload"), "{line}");
}

/// Past its end rustls refuses every client that comes with a certificate.
#[test]
fn somebody_is_told_before_a_revocation_list_ends() {
    const DAY_S: i64 = 86_400;
    let files = Files::new("lists");
    files.certificate("mail.pem", 2100);
    let mut model = model(&files, Resumption::Off);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 2, 1),
        next_update: date_time_ymd(2024, 2, 9),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let end_s = list.next_update.unix_timestamp();
    let ca = files.write("authority.pem", authority.pem());
    let crl = files.write("list.pem", list.signed_by(&authority).unwrap().pem().unwrap());
    ended(&mut model, 0).client_certificate =
        ClientCertificate::Require(ClientAuthorities { ca, crl: Some(crl.clone()) });
    let material = TlsMaterial::load(&model, &TlsMaterial::default()).unwrap();
    let mut watch = ExpiryWatch::default();
    let mut told = |now_s| {
        let dated = material.dated().map(|(service, file)| (Some(service), file));
        let events = watch.turn(std::iter::empty(), dated, now_s);
        events.iter().map(|(_, event)| event.line()).collect::<Vec<_>>()
    };
    let subject = format!("revocation list {} of owa: ", crl.display());
    assert!(told(end_s - 3 * DAY_S).is_empty(), "of its eight days, more than two are left");
    let lines = told(end_s - DAY_S);
    let line =
        format!("{subject}valid → ends soon: 1 day left; from its end on every client with a certificate is refused");
    assert!(matches!(&lines[..], [told] if told.starts_with(&line)), "{line}: {lines:?}");
    assert!(told(end_s).is_empty());
    let lines = told(end_s + 3600);
    let line = format!("{subject}ends soon → expired: for 1 hour; from its end on");
    assert!(matches!(&lines[..], [told] if told.starts_with(&line)), "{line}: {lines:?}");
}
