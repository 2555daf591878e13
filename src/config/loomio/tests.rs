use super::{super::Environment, *};

mod origin {
    use super::*;

    fn read_from(pairs: &[(&str, &str)]) -> (Option<AllowedOrigin>, Vec<String>, Vec<String>) {
        let environment = pairs.iter().copied().collect::<Environment>();
        let mut reader = Reader::new(&environment);
        let origin = allowed_origin(&mut reader);
        (origin, reader.mistakes, reader.notes)
    }

    fn allowed(pairs: &[(&str, &str)]) -> (String, &'static str) {
        let (origin, mistakes, _) = read_from(pairs);
        assert_eq!(mistakes, Vec::<String>::new());
        origin.map(|allowed| (allowed.origin, allowed.variable)).unwrap()
    }

    #[test]
    fn precedence_is_that_of_the_node_server() {
        let own = ("VIRTUAL_HOST", "channels.own.org");
        let canonical = ("CANONICAL_HOST", "canonical.org");
        let public = ("PUBLIC_APP_URL", "http://public.org:8080");
        assert_eq!(allowed(&[own]), ("https://own.org".into(), "VIRTUAL_HOST"));
        assert_eq!(allowed(&[own, canonical]), ("https://canonical.org".into(), "CANONICAL_HOST"));
        assert_eq!(allowed(&[own, canonical, public]), ("http://public.org:8080".into(), "PUBLIC_APP_URL"));
        assert_eq!(allowed(&[("PUBLIC_APP_URL", " "), canonical]).1, "CANONICAL_HOST");
        assert_eq!(read_from(&[]), (None, vec![], vec![]));
    }

    #[test]
    fn what_does_not_decide_cannot_be_a_mistake() {
        let pairs = [("PUBLIC_APP_URL", "https://a.org"), ("CANONICAL_HOST", "not a host")];
        assert_eq!(allowed(&pairs).0, "https://a.org");
    }

    #[test]
    fn urls_are_cut_to_what_browsers_send_and_said_so() {
        for text in ["https://a.org/", "https://A.org:443", "https://a.org/path?x#y", "https://user:hunter2@a.org"] {
            let (origin, mistakes, notes) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!(origin.map(|allowed| allowed.origin).as_deref(), Some("https://a.org"), "{mistakes:?}");
            assert_eq!(notes.len(), 1);
            assert!(!notes[0].contains("hunter2"));
        }
        assert_eq!(read_from(&[("PUBLIC_APP_URL", "https://a.org")]).2, Vec::<String>::new());
        assert_eq!(allowed(&[("CANONICAL_HOST", "bücher.org:8443")]).0, "https://xn--bcher-kva.org:8443");
        assert_eq!(allowed(&[("VIRTUAL_HOST", "channels.a.org, channels.b.org")]).0, "https://a.org");
    }

    #[test]
    fn mistakes_say_what_is_wanted() {
        for text in ["loomio.org", "localhost:3000", "ftp://a.org", "*", "https://", "\"https://a.org\""] {
            let (origin, mistakes, _) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!((origin, mistakes.len()), (None, 1), "{text}");
        }
        for text in ["https://user:a/hunter2@a.org", "https://user:1/hunter2@a.org", "https://user:a@b/hunter2@a.org"] {
            let (origin, mistakes, _) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!((origin, mistakes.len()), (None, 1), "{text}");
            assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
        }
        for text in ["https://a.org", "a.org/path", "user@a.org", "a b", "a.org:port"] {
            let (_, mistakes, _) = read_from(&[("CANONICAL_HOST", text)]);
            assert!(mistakes[0].starts_with("CANONICAL_HOST"), "{text}");
            assert!(mistakes[0].ends_with("give the name alone, for example loomio.example.org"), "{text}");
        }
    }
}

mod rails {
    use super::*;

    fn read_from(pairs: &[(&str, &str)]) -> (Option<(String, &'static str)>, Vec<String>, Vec<String>) {
        let environment = pairs.iter().copied().collect::<Environment>();
        let mut reader = Reader::new(&environment);
        let found = rails_endpoint(&mut reader).map(|endpoint| (endpoint.url.to_string(), endpoint.variable));
        (found, reader.mistakes, reader.notes)
    }

    fn found(pairs: &[(&str, &str)]) -> (String, &'static str) {
        let (found, mistakes, _) = read_from(pairs);
        assert_eq!(mistakes, Vec::<String>::new());
        found.unwrap()
    }

    #[test]
    fn precedence_is_that_of_the_node_server() {
        let private = ("PRIVATE_APP_URL", "http://app:3000");
        let app = ("APP_URL", "https://app.org");
        let public = ("PUBLIC_APP_URL", "https://public.org/");
        let canonical = ("CANONICAL_HOST", "canonical.org");
        let at = |base: &str, variable| (format!("{base}/api/hocuspocus"), variable);
        assert_eq!(found(&[canonical]), at("https://canonical.org", "CANONICAL_HOST"));
        assert_eq!(found(&[canonical, public]), at("https://public.org", "PUBLIC_APP_URL"));
        assert_eq!(found(&[canonical, public, app]), at("https://app.org", "APP_URL"));
        assert_eq!(found(&[canonical, public, app, private]), at("http://app:3000", "PRIVATE_APP_URL"));
        assert_eq!(read_from(&[("VIRTUAL_HOST", "channels.a.org")]), (None, vec![], vec![]));
    }

    #[test]
    fn what_does_not_belong_to_an_address_is_left_out() {
        for (text, url) in [
            ("http://app:3000//", "http://app:3000/api/hocuspocus"),
            ("https://a.org/loomio/", "https://a.org/loomio/api/hocuspocus"),
            ("https://a.org/#top", "https://a.org/api/hocuspocus"),
        ] {
            assert_eq!(found(&[("PRIVATE_APP_URL", text)]).0, url);
            assert!(read_from(&[("PRIVATE_APP_URL", text)]).2.is_empty());
        }
        for text in ["https://user:hunter2@a.org", "https://hunter2@a.org/", "https://a.org?key=hunter2"] {
            assert_eq!(found(&[("APP_URL", text)]).0, "https://a.org/api/hocuspocus");
            let (_, _, notes) = read_from(&[("APP_URL", text)]);
            assert!(notes.len() == 1 && !notes[0].contains("hunter2"), "{notes:?}");
        }
    }

    #[test]
    fn mistakes_are_those_of_the_variable_that_decides() {
        for text in ["app:3000", "app", "ftp://a.org", "https://", "'https://a.org'", "unix:/run/app.sock"] {
            let (found, mistakes, _) = read_from(&[("PRIVATE_APP_URL", text), ("APP_URL", "nonsense")]);
            assert_eq!((found, mistakes.len()), (None, 1), "{text}");
            assert!(mistakes[0].starts_with("PRIVATE_APP_URL"), "{mistakes:?}");
        }
    }
}
