use std::collections::BTreeMap;

use super::*;

fn image(folder: &Path) -> PathBuf {
    let program = folder.join("program");
    std::fs::write(&program, "#!").unwrap();
    let path = folder.join("image.tar");
    let config = Config {
        entrypoint: vec!["/bin/program".into()],
        user: "65532:65532".into(),
        env: vec!["A=b".into()],
        working_dir: "/".into(),
    };

    let files = [
        (Entry::File {
            source: program,
            dest: "/bin/program".into(),
            mode: 0o755,
        }),
        (Entry::Symlink {
            target: "program".into(),
            dest: "/bin/other".into(),
        }),
        (Entry::Directory {
            dest: "/tmp".into(),
            mode: 0o1777,
        }),
        (Entry::Bytes {
            bytes: b"x".to_vec(),
            dest: "/etc/a/b".into(),
            mode: 0o644,
        }),
    ];
    write(&path, "millstream.local/program:1", &config, &files).unwrap();
    path
}

fn members(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, (entry.header().mode().unwrap(), bytes))
    });
    entries.collect()
}

#[test]
fn every_digest_names_a_blob_of_that_content() {
    let folder = tempfile::tempdir().unwrap();
    let outer = members(&std::fs::read(image(folder.path())).unwrap());
    let blob = |descriptor: &Value| {
        let digest = &descriptor["digest"].as_str().unwrap()["sha256:".len()..];
        let (_, bytes) = &outer[&format!("blobs/sha256/{digest}")];
        assert_eq!(sha256(&bytes[..]).unwrap(), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    };
    let index: Value = serde_json::from_slice(&outer["index.json"].1).unwrap();
    let named = &index["manifests"][0];
    assert_eq!(
        named["annotations"]["io.containerd.image.name"],
        "millstream.local/program:1"
    );
    let manifest: Value = serde_json::from_slice(&blob(named)).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    let mut layer = Vec::new();
    let compressed = blob(&manifest["layers"][0]);
    flate2::read::GzDecoder::new(&compressed[..])
        .read_to_end(&mut layer)
        .unwrap();
    let diff_id = format!("sha256:{}", sha256(&layer[..]).unwrap());
    assert_eq!(config["rootfs"]["diff_ids"], json!([diff_id]));

    let layer = members(&layer);
    let modes: Vec<_> = layer
        .iter()
        .map(|(n, (mode, _))| (n.as_str(), *mode))
        .collect();
    assert_eq!(
        modes,
        [
            ("bin/", 0o755),
            ("bin/other", 0o777),
            ("bin/program", 0o755),
            ("etc/", 0o755),
            ("etc/a/", 0o755),
            ("etc/a/b", 0o644),
            ("tmp/", 0o1777),
        ]
    );
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(
        std::fs::read(image(one.path())).unwrap(),
        std::fs::read(image(two.path())).unwrap()
    );
}
