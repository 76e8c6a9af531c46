//! The program `dwcp-image`, started as the launcher starts it.
//!
//! What always holds: it answers the same as the library; what it may not do ends it; what it answers is checked.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dwcp_channel::Channel;
use dwcp_image::boot::Source;
use dwcp_image::disk::{Expected, Format};
use dwcp_image::protocol::{Answer, AnswerError, Job, Task, receive};
use dwcp_image::spawn::{Ended, Plan, run};
use support::*;

const DEADLINE: Duration = Duration::from_secs(300);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dwcp-image"))
}

fn start(job: Job, images: &[(&Path, Expected)], outputs: Option<(File, File)>) -> Ended {
    let task = Task {
        job,
        images: images.iter().map(|(_, expected)| *expected).collect(),
    };
    let plan = Plan {
        program: program(),
        task: &task,
        images: images
            .iter()
            .map(|(path, _)| File::open(path).unwrap())
            .collect(),
        outputs,
    };
    run(plan, DEADLINE).unwrap()
}

/// A whole disk with a kernel under its usual name.
fn make_disk(folder: &Path) -> (std::path::PathBuf, Vec<u8>, Vec<u8>) {
    let (kernel, initrd) = (noise(1, 5_000_003), noise(2, 9_000_001));
    lay_out(
        &folder.join("root"),
        &[
            ("/vmlinuz", Content::Link("boot/vmlinuz-6")),
            ("/initrd.img", Content::Link("boot/initrd.img-6")),
            ("/boot/vmlinuz-6", Content::File(&kernel)),
            ("/boot/initrd.img-6", Content::File(&initrd)),
            ("/etc/fstab", Content::File(b"")),
        ],
    );
    let disk = folder.join("disk.raw");
    make_ext4(
        &disk,
        &folder.join("root"),
        32 * MIB,
        "9c3e58bd-3a7e-4b63-9c6c-7f5a2b0f6f10",
        &[],
    );
    (disk, kernel, initrd)
}

#[test]
fn kernel_and_initrd_come_out_of_a_confined_process() {
    let name = "kernel_and_initrd_come_out_of_a_confined_process";
    if !has_tools(name, &["mkfs.ext4", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (raw, kernel, initrd) = make_disk(folder.path());
    make_qcow2(&raw, &at("disk.qcow2"), &["-c"]);
    dwcp_image::volume::create_qcow2(output(&at("top.qcow2")), 32 * MIB).unwrap();
    let chain = [
        (&*at("top.qcow2"), Expected::Qcow2),
        (&*at("disk.qcow2"), Expected::Detect),
    ];
    let outputs = (output(&at("kernel")), output(&at("initrd")));
    let ended = start(Job::Boot, &chain, Some(outputs));
    assert_eq!((ended.status.code(), &ended.words), (Some(0), &None));
    let Answer::Booted(inspection, boot) = ended.answer.unwrap() else {
        panic!("no kernel");
    };
    assert_eq!(boot.source, Source::UsualNames);
    assert_eq!(boot.command_line, "root=/dev/vda ro console=ttyS0");
    assert_eq!(fs::read(at("kernel")).unwrap(), kernel);
    assert_eq!(fs::read(at("initrd")).unwrap(), initrd);
    assert_eq!(inspection.layers.len(), 2);

    let ended = start(Job::Inspect, &chain[1..], None);
    let Answer::Inspected(inspection) = ended.answer.unwrap() else {
        panic!("not inspected");
    };
    assert_eq!(inspection.layers[0].format, Format::Qcow2);
    assert_eq!(inspection.virtual_bytes, 32 * MIB);
}

#[test]
fn a_refusal_is_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, b"QFI\xfbnot much of a qcow2").unwrap();
    for (job, outputs) in [
        (Job::Inspect, None),
        (
            Job::Boot,
            Some((tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap())),
        ),
    ] {
        let ended = start(job, &[(&image, Expected::Detect)], outputs);
        assert_eq!((ended.status.code(), &ended.words), (Some(0), &None));
        let Answer::Refused(reason) = ended.answer.unwrap() else {
            panic!("not refused");
        };
        assert!(reason.contains("cannot be read as qcow2"), "{reason}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_a_refusal() {
    if !has_tools(
        "an_output_that_cannot_be_written_is_a_refusal",
        &["mkfs.ext4"],
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, _, _) = make_disk(folder.path());
    let read_only = || File::open(&raw).unwrap();
    let ended = start(
        Job::Boot,
        &[(&raw, Expected::Raw)],
        Some((read_only(), read_only())),
    );
    let Answer::Refused(reason) = ended.answer.unwrap() else {
        panic!("not refused");
    };
    assert!(reason.contains("could not be written"), "{reason}");
}

#[test]
fn descriptors_that_do_not_fit_the_task_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, [0; 4096]).unwrap();
    let ended = start(Job::Boot, &[(&image, Expected::Raw)], None);
    assert_eq!(ended.status.code(), Some(1));
    assert!(matches!(ended.answer, Err(AnswerError::Channel(_))));
    let words = ended.words.unwrap();
    assert_eq!(words, "error: The task comes with 4 descriptors, not 2");
}

#[test]
fn by_hand_it_says_that_it_is_not_for_that() {
    let output = std::process::Command::new(program()).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("not by hand"), "{text}");
}

/// What a reader that was taken over could answer.
#[test]
fn an_answer_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let kernel = output(&at("kernel"));
    let initrd = output(&at("initrd"));
    (&kernel).write_all(b"kernel").unwrap();
    let task = Task {
        job: Job::Boot,
        images: vec![Expected::Raw],
    };
    let ask = |answer: &serde_json::Value| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        Channel::new(theirs).send(answer, &[]).unwrap();
        receive(&mut Channel::new(ours), &task, Some((&kernel, &initrd)))
    };
    let good = serde_json::json!({ "booted": [
        {
            "layers": [{ "format": "raw", "virtual_bytes": 1, "file_bytes": 1, "allocated_bytes": 1 }],
            "virtual_bytes": 1, "allocated_bytes": 1, "table": "none", "partitions": [],
        },
        {
            "source": "grub", "kernel_path": "/k", "kernel_bytes": 6, "initrd_paths": [], "initrd_bytes": 0,
            "command_line": "ro", "remarks": ["x"],
        },
    ]});
    assert!(matches!(ask(&good), Ok(Answer::Booted(..))));
    let changes: [(&str, serde_json::Value); 10] = [
        ("/booted/1/kernel_bytes", 7.into()),
        ("/booted/1/kernel_bytes", 0.into()),
        ("/booted/1/initrd_bytes", 1.into()),
        ("/booted/1/command_line", "a\nb".into()),
        ("/booted/1/command_line", "x".repeat(5000).into()),
        ("/booted/1/kernel_path", "/\u{1b}[2J".into()),
        ("/booted/1/remarks", vec!["x"; 65].into()),
        ("/booted/1/remarks/0", "\u{202e}".into()),
        ("/booted/0/virtual_bytes", u64::MAX.into()),
        ("/booted/0/layers", serde_json::json!([])),
    ];
    for (place, value) in changes {
        let mut answer = good.clone();
        *answer.pointer_mut(place).unwrap() = value.clone();
        assert!(ask(&answer).is_err(), "{place} = {value}");
    }
    let inspected = serde_json::json!({ "inspected": good["booted"][0] });
    assert!(matches!(ask(&inspected), Err(AnswerError::Mismatch)));
    let refused = serde_json::json!({ "refused": "no\u{7}\nkernel" });
    assert_eq!(ask(&refused).unwrap(), Answer::Refused("no??kernel".into()));
}
