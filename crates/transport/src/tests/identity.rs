//! Who is let in: certificates, names, and the node's own policy.

use std::time::SystemTime;

use super::*;
use crate::close;

/// A node, and the counter of its refused handshakes for one reason.
fn refusals(node: &Node, reason: &str) -> u64 {
    let key = format!("quorate_transport_refused_handshakes_total{{{reason}}}");
    node.figures.counter(&key)
}

/// Waits until the node has counted a refusal, which follows the close that we have seen.
async fn counted(node: &Node, reason: &str) {
    let counted = async {
        while refusals(node, reason) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("not counted");
}

#[tokio::test]
async fn another_authoritys_node_is_refused_by_both_sides() {
    let mut one = Node::open(&authority(), 1).await;
    let mut stranger = Node::open(&authority(), 2).await;
    stranger.dial(&one);
    let reason = stranger.refused(1).await;
    assert!(reason.contains("TLS"), "{reason}");
    one.dial(&stranger);
    let reason = one.refused(2).await;
    assert!(reason.contains("TLS"), "{reason}");
}

#[tokio::test]
async fn another_authoritys_certificate_is_refused_though_it_trusts_us() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    let mut tls = tls_of(&authority(), CLUSTER, "n2");
    tls.ca_pem = ca.cert_pem().to_owned();
    let bare = Bare::new(&tls, 2);
    let error = bare.greet(&one).await.unwrap_err();
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    counted(&one, "tls").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    let hour = Duration::from_secs(3_600);
    let validity = (SystemTime::now() - 3 * hour, SystemTime::now() - hour);
    let issued = ca.issue_between(CLUSTER, "n2", &[], validity).unwrap();
    let tls = TlsConfig {
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
        ca_pem: ca.cert_pem().to_owned(),
    };
    let error = Bare::new(&tls, 2).greet(&one).await.unwrap_err();
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_though_its_authority_is_ours() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let mut recipe = Recipe::new(&ca, 2);
    recipe.config.cluster_name = "other".into();
    recipe.config.tls = tls_of(&ca, "other", "n2");
    recipe.words.cluster_name = "other".into();
    let mut stranger = recipe.open().await;
    // It looks for its own cluster, and does not find it here.
    stranger.dial(&one);
    assert!(stranger.refused(1).await.contains("TLS"));
    // Nor do we there.
    one.dial(&stranger);
    assert!(one.refused(2).await.contains("TLS"));

    // One that finds us all the same, and is honest about its cluster.
    let mut bare = Bare::new(&tls_of(&ca, "other", "n2"), 2);
    bare.words.cluster_name = "other".into();
    let (code, reason) = code_of(&bare.greet(&one).await.unwrap_err());
    assert_eq!(code, u64::from(close::CLUSTER), "{reason}");
    assert!(reason.contains("\"other\" is not ours"), "{reason}");
    counted(&one, "cluster").await;

    // And one that is not.
    bare.words.cluster_name = CLUSTER.into();
    let (code, reason) = code_of(&bare.greet(&one).await.unwrap_err());
    assert_eq!(code, u64::from(close::IDENTITY), "{reason}");
    assert!(reason.contains("n2.node.other.quorate"), "{reason}");
    counted(&one, "identity").await;
}

#[tokio::test]
async fn a_node_cannot_take_another_nodes_name() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let mut bare = Bare::new(&tls_of(&ca, CLUSTER, "n3"), 3);
    bare.words = words(2);
    let (code, reason) = code_of(&bare.greet(&one).await.unwrap_err());
    assert_eq!(code, u64::from(close::IDENTITY));
    assert!(reason.contains("for n3.node.test.quorate"), "{reason}");
    assert!(one.refused(2).await.contains("refused by us"));
}

#[tokio::test]
async fn dialing_the_wrong_node_is_noticed() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let three = Node::open(&ca, 3).await;
    one.dial_at(2, three.transport.local_addr());
    let reason = one.refused(2).await;
    assert!(reason.contains("TLS"), "{reason}");
}

#[tokio::test]
async fn a_node_with_the_right_name_and_the_wrong_id_is_refused() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let mut recipe = Recipe::new(&ca, 2);
    recipe.words.node = NodeId(9);
    let two = recipe.open().await;
    one.dial(&two);
    let reason = one.refused(2).await;
    assert!(reason.contains("node 9"), "{reason}");
}

#[tokio::test]
async fn a_hello_for_another_node_is_refused() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let bare = Bare::new(&tls_of(&ca, CLUSTER, "n2"), 2);
    let connection = bare.dial(&one).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let hello = Hello { target: NodeId(5), ..words(2) };
    write_hello(&mut send, Some(StreamKind::Hello), &hello).await.unwrap();
    let (code, reason) = code_of(&closed(&connection).await);
    assert_eq!(code, u64::from(close::TARGET));
    assert!(reason.contains("node 5 is meant"), "{reason}");
    one.refused(2).await;
    assert_eq!(refusals(&one, "target"), 1);
}

#[tokio::test]
async fn the_nodes_own_policy_is_asked_and_its_reason_reaches_the_peer() {
    let ca = authority();
    let (mut one, mut two) = (Node::open(&ca, 1).await, Node::open(&ca, 2).await);
    *one.probe.refuse.lock().unwrap() = Some(Refusal::Policy("wiped: replace the member".into()));
    two.dial(&one);
    assert_eq!(two.refused(1).await, "refused by the peer: wiped: replace the member");
    assert_eq!(one.refused(2).await, "refused by us: wiped: replace the member");
    // The dialer's policy counts as well.
    one.dial(&two);
    assert_eq!(one.refused(2).await, "refused by us: wiped: replace the member");
    assert_eq!(two.refused(1).await, "refused by the peer: wiped: replace the member");
    // And may change its mind.
    *one.probe.refuse.lock().unwrap() = None;
    two.up(1).await;
    one.up(2).await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_told_so_by_both_kinds_of_connection() {
    let ca = authority();
    let (mut one, mut two) = (Node::open(&ca, 1).await, Node::open(&ca, 2).await);
    *one.probe.refuse.lock().unwrap() = Some(Refusal::Removed("n2 was removed".into()));
    two.dial(&one);
    assert_eq!(two.removed(1).await, "refused by the peer: n2 was removed");
    assert_eq!(one.refused(2).await, "refused by us: n2 was removed");
    one.dial(&two);
    assert_eq!(two.removed(1).await, "refused by the peer: n2 was removed");
}

#[tokio::test]
async fn a_node_that_runs_on_a_copy_is_told_so_by_both_kinds_of_connection() {
    let ca = authority();
    let (mut one, mut two) = (Node::open(&ca, 1).await, Node::open(&ca, 2).await);
    *one.probe.refuse.lock().unwrap() = Some(Refusal::Copy("n2 is a copy".into()));
    two.dial(&one);
    assert_eq!(two.copy(1).await, "refused by the peer: n2 is a copy");
    assert_eq!(one.refused(2).await, "refused by us: n2 is a copy");
    one.dial(&two);
    assert_eq!(two.copy(1).await, "refused by the peer: n2 is a copy");
}

#[tokio::test]
async fn a_node_without_an_id_can_ask_those_it_knows_by_name_and_nothing_else() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    let mut recipe = Recipe::new(&ca, 2);
    recipe.config.node = NodeId::ZERO;
    recipe.words = Hello { node: NodeId::ZERO, ..recipe.words };
    let (sender, _events) = mpsc::unbounded_channel();
    let nobody = Nobody(Probe { words: recipe.words, refuse: Mutex::default(), events: sender });
    let figures = Figures::default();
    let joiner = Transport::open(recipe.config, Arc::new(nobody), recipe.link, &figures);
    let joiner = joiner.await.unwrap();
    // Any number will do for the id that it does not know.
    let address = one.transport.local_addr().to_string();
    joiner.add_peer(NodeId(77), "n1", address).unwrap();
    let ask = async {
        loop {
            let asked = joiner.request(NodeId(77), Bytes::from_static(b"who am I?"), PATIENCE);
            match asked.await {
                Ok(answer) => break answer,
                Err(RequestError::NotSent(_)) => tokio::task::yield_now().await,
                Err(RequestError::Unknown(error)) => panic!("{error:?}"),
            }
        }
    };
    let answer = async {
        let (body, reply) = one
            .wait(|event| match event {
                Event::Request(body, _, reply) => Some((body, reply)),
                Event::Messages(..) => panic!("messages of nobody"),
                Event::Peer(..) | Event::Snapshot(_) => None,
            })
            .await;
        assert_eq!(body, "who am I?");
        // What it says without having been asked does not count.
        joiner.send(NodeId(77), vec![beat(0, 1, 1)]);
        reply.send(Bytes::from_static(b"n2"));
    };
    assert_eq!(tokio::join!(ask, answer).0, "n2");
    let misaddressed = "quorate_transport_dropped_messages_total{misaddressed}";
    let dropped = async {
        while one.figures.counter(misaddressed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("its message was not dropped");
}

/// A node without an id, which cannot name whom it dials.
struct Nobody(Probe);

impl Handler for Nobody {
    fn hello(&self, _: NodeId) -> Hello {
        self.0.hello(NodeId::ZERO)
    }

    fn admit(&self, peer: &Hello) -> Result<(), Refusal> {
        self.0.admit(peer)
    }

    fn on_peer(&self, node: NodeId, event: PeerEvent) {
        self.0.on_peer(node, event);
    }

    fn on_messages(&self, from: NodeId, messages: Vec<Message>) {
        self.0.on_messages(from, messages);
    }

    fn on_request(&self, from: NodeId, name: &str, body: Bytes, deadline_ms: u32, reply: Replier) {
        self.0.on_request(from, name, body, deadline_ms, reply);
    }
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_refused() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    let tls = tls_of(&ca, CLUSTER, "n2");
    let mut roots = rustls::RootCertStore::empty();
    let pem = |text: &str| {
        use rustls::pki_types::pem::PemObject;
        rustls::pki_types::CertificateDer::from_pem_slice(text.as_bytes()).unwrap()
    };
    roots.add(pem(&tls.ca_pem)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    // Another version of the protocol.
    let key = {
        use rustls::pki_types::pem::PemObject;
        rustls::pki_types::PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).unwrap()
    };
    let mut other = config().with_client_auth_cert(vec![pem(&tls.cert_pem)], key).unwrap();
    other.alpn_protocols = vec![b"quorate/9".to_vec()];
    // No certificate.
    let mut bare = config().with_no_client_auth();
    bare.alpn_protocols = vec![tls::ALPN.to_vec()];
    for config in [other, bare] {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let endpoint = quinn::Endpoint::client(loopback()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let address = one.transport.local_addr();
        let connecting = endpoint.connect_with(config, address, "n1.node.test.quorate").unwrap();
        let error = match connecting.await {
            Ok(connection) => closed(&connection).await,
            Err(error) => error,
        };
        assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    }
}

#[tokio::test]
async fn an_authority_is_replaced_without_a_restart() {
    let (old, new) = (authority(), authority());
    let (mut one, mut two) = pair(&old).await;
    let both = format!("{}{}", old.cert_pem(), new.cert_pem());
    // First everybody trusts both, then shows the new certificate, then forgets the old authority.
    for (issuer, trusted) in [(&old, &both), (&new, &both), (&new, &new.cert_pem().to_owned())] {
        for (node, name) in [(&one, "n1"), (&two, "n2")] {
            let tls = TlsConfig { ca_pem: trusted.clone(), ..tls_of(issuer, CLUSTER, name) };
            node.transport.reload_tls(&tls).unwrap();
        }
        one.transport.remove_peer(NodeId(2));
        two.transport.remove_peer(NodeId(1));
        one.dial(&two);
        two.dial(&one);
        one.up(2).await;
        two.up(1).await;
    }
    // What was enough before is not any more.
    let error = Bare::new(&tls_of(&old, CLUSTER, "n3"), 3).greet(&one).await;
    assert!(error.is_err());
    let unusable = TlsConfig { key_pem: String::new(), ..tls_of(&new, CLUSTER, "n1") };
    assert!(one.transport.reload_tls(&unusable).is_err());
}
