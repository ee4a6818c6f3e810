//! What the trait promises, of every place.

use std::io::Write as _;
use std::sync::Arc;

use tidemill_blobs::{Blobs, Local, Memory, PutNew, S3, read_all};
use tidemill_test_servers::S3Server;

fn everywhere(check: impl Fn(Arc<dyn Blobs>)) {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start("bucket");
    check(Arc::new(Memory::default()));
    check(Arc::new(Local::open(folder.path().join("in/folders"))));
    check(Arc::new(S3::with_settings("s3://bucket/in/folders", server.environment()).unwrap()));
}

#[test]
fn of_many_writers_one_wins_and_its_bytes_are_there() {
    everywhere(|blobs| {
        let answers: Vec<(String, PutNew)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|i| {
                    let (content, blobs) = (format!("writer {i}"), &blobs);
                    scope.spawn(move || {
                        let answer = blobs.put_new("log/1", content.as_bytes()).unwrap();
                        (content, answer)
                    })
                })
                .collect();
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        let winners: Vec<_> = answers.iter().filter(|(_, put)| *put == PutNew::Done).collect();
        assert_eq!(winners.len(), 1, "{}: {answers:?}", blobs.location());
        assert_eq!(read_all(&*blobs, "log/1").unwrap().unwrap(), winners[0].0.as_bytes(), "{}", blobs.location());
    });
}

#[test]
fn what_was_written_is_read_listed_and_deleted() {
    everywhere(|blobs| {
        // More than two parts of an upload, and no round number of pieces.
        let large: Vec<u8> = (0..40_000_003_u64).map(|i| ((i * i) >> 7) as u8).collect();
        for (path, content) in [("files/large", large.as_slice()), ("files/small", b"few"), ("files/empty", b"")] {
            let mut writer = blobs.create(path).unwrap();
            for piece in content.chunks(1_000_001) {
                writer.write_all(piece).unwrap();
            }
            writer.finish().unwrap();
            assert!(read_all(&*blobs, path).unwrap().as_deref() == Some(content), "{} {path}", blobs.location());
        }
        let _ = blobs.put_new("files/deeper/one", b"not listed").unwrap();
        let _ = blobs.put_new("files-of-another/one", b"not listed").unwrap();
        let mut listed: Vec<_> = blobs.list("files").unwrap().into_iter().map(|l| (l.name, l.bytes)).collect();
        listed.sort();
        let expected = [("empty", 0), ("large", 40_000_003), ("small", 3)];
        assert_eq!(listed, expected.map(|(name, bytes)| (name.to_owned(), bytes)), "{}", blobs.location());

        blobs.delete("files/small").unwrap();
        blobs.delete("files/small").unwrap();
        assert!(blobs.open("files/small").unwrap().is_none());
        assert_eq!(blobs.list("files").unwrap().len(), 2);
        blobs.delete_all(&["files/large", "files/never-there", "files/empty"].map(str::to_owned)).unwrap();
        assert!(blobs.list("files").unwrap().is_empty(), "{}", blobs.location());
        assert!(blobs.open("files/deeper/one").unwrap().is_some());
        assert!(blobs.list("nothing/here").unwrap().is_empty());
    });
}
