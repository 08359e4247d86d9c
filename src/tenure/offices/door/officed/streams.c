/* Byte streams: to a port of the office, to an sshd. */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Copies both ways until both directions ended; a half-closed side is passed on. */
void splice_both(int a, int b) {
    int fd[2] = {a, b}, open_from[2] = {1, 1};
    char *buf = malloc(CHUNK_BYTES);
    while (buf && (open_from[0] || open_from[1])) {
        struct pollfd p[2] = {{open_from[0] ? a : -1, POLLIN, 0}, {open_from[1] ? b : -1, POLLIN, 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) break;
        for (int i = 0; i < 2; i++) {
            if (!open_from[i] || !p[i].revents) continue;
            ssize_t n = read(fd[i], buf, CHUNK_BYTES);
            if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            if (n <= 0) {
                open_from[i] = 0;
                shutdown(fd[!i], SHUT_WR);
            } else if (write_all(fd[!i], buf, (size_t)n)) {
                open_from[0] = open_from[1] = 0;
            }
        }
    }
    free(buf);
}

void dial_port(int conn, struct request *r) {
    char host[64];
    unsigned port;
    struct sockaddr_in a = {.sin_family = AF_INET};
    if (!r->argc || sscanf(r->argv[0], "%63[^:]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &a.sin_addr) != 1) {
        send_text(conn, '!', "address: expected ADDRESS:PORT");
        return;
    }
    a.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) {
        send_text(conn, '!', "dial: nothing listens on %s in the office (%s)", r->argv[0], strerror(errno));
    } else {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pair_line(conn, fd);
        if (!send_text(conn, 'p', "0")) splice_both(conn, fd);
        pair_line(conn, -1);
    }
    if (fd >= 0) close(fd);
}

void serve_ssh(int conn, struct request *r) {
    int pair[2];
    char why[400];
    char *argv[] = {"/usr/sbin/sshd", "-i", "-e", NULL};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        send_text(conn, '!', "setup: no descriptors left in the office");
        return;
    }
    mkdir("/run/sshd", 0755);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    r->argc = 3, memcpy(r->argv, argv, sizeof argv), r->user = "root";
    struct child *c = spawn(r, pair[1], pair[1], null, 0, why, sizeof why);
    close(pair[1]), close(null);
    if (!c) {
        send_text(conn, '!', "%s", why);
        close(pair[0]);
        return;
    }
    pair_line(conn, pair[0]);
    if (!send_text(conn, 'p', "%d", c->pid)) splice_both(conn, pair[0]);
    pair_line(conn, -1);
    close(pair[0]);
    end_child(c, SIGHUP);
    forget_child(c);
}
