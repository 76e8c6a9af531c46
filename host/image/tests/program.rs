//! The program `dwcp-image`, started as the launcher starts it.
//!
//! What always holds: it answers the same as the library; what it may not do ends it; what it answers is checked.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_channel::Channel;
use dwcp_image::boot::Source;
use dwcp_image::disk::{Expected, Format};
use dwcp_image::limits::SENTENCE_CHARACTERS_MAX;
use dwcp_image::protocol::{Answer, AnswerError, Job, Task, receive};
use support::spawn::{Ended, Plan, Started};
use support::*;

const DEADLINE: Duration = Duration::from_secs(300);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dwcp-image"))
}

fn start(job: Job, images: &[(&Path, Expected)], outputs: Option<(File, File)>) -> Ended {
    begin(program(), job, images, outputs)
        .finish(DEADLINE)
        .unwrap()
}

fn begin(
    program: &Path,
    job: Job,
    images: &[(&Path, Expected)],
    outputs: Option<(File, File)>,
) -> Started {
    let task = Task {
        job,
        images: images.iter().map(|(_, expected)| *expected).collect(),
    };
    let plan = Plan {
        program,
        task: &task,
        images: images
            .iter()
            .map(|(path, _)| File::open(path).unwrap())
            .collect(),
        outputs,
    };
    spawn::start(plan).unwrap()
}

/// Waits until a process is confined: whether it has a filter, no new privileges, and which descriptors.
fn confinement(pid: u32) -> (bool, bool, Vec<String>) {
    let until = Instant::now() + DEADLINE;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let has = |line: &str| status.lines().any(|one| one == line);
        if has("Seccomp:\t2") || Instant::now() > until {
            let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            open.sort_by_key(|number| number.parse::<u32>().unwrap());
            return (has("Seccomp:\t2"), has("NoNewPrivs:\t1"), open);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
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

/// A journal that says it is four thousand million blocks long and begins at the last of them: the crate that reads it
/// counts them all, without reading a byte.
#[test]
fn what_takes_too_long_is_ended_and_said() {
    let name = "what_takes_too_long_is_ended_and_said";
    if !has_tools(name, &["mkfs.ext4", "sh"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    lay_out(&at("root"), &[("/etc/fstab", Content::File(b""))]);
    let uuid = "9c3e58bd-3a7e-4b63-9c6c-7f5a2b0f6f10";
    let options = [
        "-b",
        "1024",
        "-I",
        "256",
        "-O",
        "^metadata_csum,^64bit,extents,has_journal",
    ];
    make_ext4(&at("disk"), &at("root"), 8 * MIB, uuid, &options);
    let mut image = fs::read(at("disk")).unwrap();
    let number =
        |image: &[u8], at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let inodes = number(&image, 2 * 1024 + 8) as usize * 1024;
    let inode = inodes + 7 * 256;
    let journal = number(&image, inode + 0x28 + 12 + 8) as usize * 1024;
    // It needs its journal.
    image[1024 + 0x60] |= 4;
    image[inode + 4..inode + 8].copy_from_slice(&0xffff_fc00u32.to_le_bytes());
    image[inode + 0x6c..inode + 0x70].copy_from_slice(&0x3ffu32.to_le_bytes());
    assert_eq!(image[journal..journal + 4], [0xc0, 0x3b, 0x39, 0x98]);
    let mut put = |at: usize, bytes: &[u8]| {
        image[journal + at..journal + at + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1c, &0xffff_fff0u32.to_be_bytes());
    put(0x28, &0x12u32.to_be_bytes());
    put(0x50, &[4]);
    put(0xfc, &[0; 4]);
    let sum = !crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&image[journal..journal + 1024]);
    image[journal + 0xfc..journal + 0x100].copy_from_slice(&sum.to_be_bytes());
    fs::write(at("disk"), &image).unwrap();

    // With a narrower limit than its own, so that the test need not wait for that.
    let script = format!("#!/bin/sh\nulimit -t 3\nexec {} \"$@\"\n", text(program()));
    fs::write(at("narrow"), script).unwrap();
    fs::set_permissions(
        at("narrow"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let started = begin(
        &at("narrow"),
        Job::Inspect,
        &[(&at("disk"), Expected::Raw)],
        None,
    );
    // While it counts, it can be looked at from outside.
    let (has_filter, is_unprivileged, open) = confinement(started.pid());
    assert!(has_filter && is_unprivileged);
    assert_eq!(open, ["0", "1", "2", "3", "5", "6"]);
    let ended = started.finish(DEADLINE).unwrap();
    assert!(ended.is_too_long(), "{ended:?}");
    assert!(matches!(ended.answer, Err(AnswerError::Channel(_))));
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
    let mut longest = good.clone();
    longest["booted"][1]["remarks"][0] = "x".repeat(SENTENCE_CHARACTERS_MAX).into();
    assert!(matches!(ask(&longest), Ok(Answer::Booted(..))));
    let changes: [(&str, serde_json::Value); 12] = [
        ("/booted/1/kernel_bytes", 7.into()),
        ("/booted/1/kernel_bytes", 0.into()),
        ("/booted/1/initrd_bytes", 1.into()),
        ("/booted/1/command_line", "a\nb".into()),
        ("/booted/1/command_line", "x".repeat(5000).into()),
        ("/booted/1/command_line", "root=é".into()),
        ("/booted/1/kernel_path", "/\u{1b}[2J".into()),
        ("/booted/1/remarks", vec!["x"; 65].into()),
        ("/booted/1/remarks/0", "\u{202e}".into()),
        (
            "/booted/1/remarks/0",
            "x".repeat(SENTENCE_CHARACTERS_MAX + 1).into(),
        ),
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
