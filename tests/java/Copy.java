import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Copies a file to another in one of the ways that Java has: {@code java Copy.java HOW FROM TO}. */
class Copy {
    public static void main(String[] args) throws IOException {
        Path from = Path.of(args[1]), to = Path.of(args[2]);
        switch (args[0]) {
            case "transfer-to-file":
                try (var in = FileChannel.open(from); var out = created(to)) {
                    for (long at = 0, n; (n = in.transferTo(at, 1 << 30, out)) > 0; )
                        at += n;
                }
                break;
            case "transfer-from-file":
                try (var in = FileChannel.open(from); var out = created(to)) {
                    for (long at = 0, n; (n = out.transferFrom(in, at, 1 << 30)) > 0; )
                        at += n;
                }
                break;
            case "transfer-to-stream":
                // Not the class itself, which would be known to have a descriptor.
                try (var in = FileChannel.open(from); var out = Channels.newChannel(new FileOutputStream(args[2]) { })) {
                    for (long at = 0, n; (n = in.transferTo(at, 1 << 30, out)) > 0; )
                        at += n;
                }
                break;
            case "map":
                try (var in = FileChannel.open(from); var out = created(to)) {
                    out.write(in.map(FileChannel.MapMode.READ_ONLY, 0, in.size()));
                }
                break;
            case "copy":
                Files.copy(from, to);
                break;
            case "bytes":
                Files.write(to, Files.readAllBytes(from));
                break;
            case "streams":
                try (var in = new FileInputStream(args[1]); var out = new FileOutputStream(args[2])) {
                    in.transferTo(out);
                }
                break;
            default:
                throw new IllegalArgumentException(args[0]);
        }
    }

    private static FileChannel created(Path to) throws IOException {
        return FileChannel.open(to, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
    }
}
