/* sudo, without a set-uid program: gVisor gives no privileges to those, and an office is its agent's machine.
 *
 * `officed sudo COMMAND` (which /usr/local/bin/sudo calls) sends command, environment, directory and its three standard
 * descriptors over an abstract socket to the running officed, which starts the command as root or as the -u user. Only
 * root and the office's own user may ask.
 */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { OFFICE_USER_UID = 1000 };
static const char socket_name[] = "\0tenure-sudo"; /* abstract: no file, which a snapshot or a checkpoint would meet */
extern char **environ;

static socklen_t sudo_address(struct sockaddr_un *a) {
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path, socket_name, sizeof socket_name - 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof socket_name - 1);
}

/* --- the asking side --------------------------------------------------------------------------------------------- */

static int put_field(char **at, char *end, char tag, const char *value) {
    size_t n = strlen(value);
    if ((size_t)(end - *at) < n + 5) return -1;
    uint32_t be = htonl((uint32_t)n);
    **at = tag;
    memcpy(*at + 1, &be, 4), memcpy(*at + 5, value, n);
    *at += n + 5;
    return 0;
}

static int send_with_stdio(int fd, const void *data, size_t n) {
    char control[CMSG_SPACE(3 * sizeof(int))] = {0};
    int stdio[3] = {0, 1, 2};
    struct iovec part = {(void *)data, n};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof stdio);
    memcpy(CMSG_DATA(c), stdio, sizeof stdio);
    return sendmsg(fd, &m, 0) == (ssize_t)n ? 0 : -1;
}

static int asked = -1;

static void pass_signal(int sig) {
    char frame[8] = {'s', 0, 0, 0, 2, (char)('0' + sig / 10), (char)('0' + sig % 10)};
    if (asked >= 0) (void)!write(asked, frame, 7);
}

static int wait_for_exit(int fd) {
    char head[5];
    uint32_t n;
    for (;;) {
        if (read_all(fd, head, 5)) return fprintf(stderr, "sudo: the office's officed went away\n"), 1;
        memcpy(&n, head + 1, 4), n = ntohl(n);
        char message[1024];
        if (n >= sizeof message || read_all(fd, message, n)) return 1;
        message[n] = 0;
        if (head[0] == '!') return fprintf(stderr, "sudo: %s\n", message), 1;
        if (head[0] == 'x') return atoi(message);
    }
}

int sudo_main(int argc, char **argv) {
    const char *user = "root";
    int i = 1, shell = 0;
    for (; i < argc && (argv[i][0] == '-' || strchr(argv[i], '=')); i++) {
        if (!strcmp(argv[i], "--")) { i++; break; }
        if (argv[i][0] != '-') putenv(argv[i]);
        else if ((!strcmp(argv[i], "-u") || !strcmp(argv[i], "--user")) && i + 1 < argc) user = argv[++i];
        else if (!strncmp(argv[i], "--user=", 7)) user = argv[i] + 7;
        else if (!strcmp(argv[i], "-i") || !strcmp(argv[i], "-s") || !strcmp(argv[i], "--login")) shell = 1;
        else if (!strcmp(argv[i], "-v") || !strcmp(argv[i], "-k") || !strcmp(argv[i], "-K")) return 0;
        else if (strspn(argv[i] + 1, "EnHSPb") != strlen(argv[i] + 1) && strcmp(argv[i], "--preserve-env"))
            return fprintf(stderr, "sudo: this office's sudo does not know %s\n", argv[i]), 1;
    }
    if (i >= argc && !shell) return fprintf(stderr, "usage: sudo [-u USER] [NAME=VALUE] COMMAND [ARGUMENT]...\n"), 1;
    struct sockaddr_un a;
    socklen_t size = sudo_address(&a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (void *)&a, size)) return fprintf(stderr, "sudo: officed does not answer: %s\n", strerror(errno)), 1;

    char *request = malloc(REQUEST_BYTES_MAX + 4), *at = request + 4, *end = request + REQUEST_BYTES_MAX, cwd[4096];
    int full = !request || put_field(&at, end, 'o', "sudo") || put_field(&at, end, 'u', user);
    if (!full && getcwd(cwd, sizeof cwd)) full |= put_field(&at, end, 'd', cwd);
    static const char *replaced[] = {"HOME=", "USER=", "LOGNAME=", "SHELL=", "SUDO_USER="};
    for (char **e = environ; *e && !full; e++) {
        int skip = 0;
        for (size_t k = 0; k < sizeof replaced / sizeof *replaced; k++) skip |= !strncmp(*e, replaced[k], strlen(replaced[k]));
        if (!skip) full |= put_field(&at, end, 'e', *e);
    }
    for (; i < argc && !full; i++) full |= put_field(&at, end, 'a', argv[i]);
    if (full) return fprintf(stderr, "sudo: command and environment are too long\n"), 1;
    uint32_t be = htonl((uint32_t)(at - request - 4));
    memcpy(request, &be, 4);
    /* the descriptors travel with one byte of their own, so that the request can be longer than a message */
    char ready;
    if (read_all(fd, &ready, 1) || send_with_stdio(fd, "s", 1) || write_all(fd, request, (size_t)(at - request)))
        return fprintf(stderr, "sudo: officed did not take the command\n"), 1;
    asked = fd;
    struct sigaction pass = {.sa_handler = pass_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &pass, NULL), sigaction(SIGTERM, &pass, NULL), sigaction(SIGHUP, &pass, NULL), sigaction(SIGQUIT, &pass, NULL);
    return wait_for_exit(fd);
}

/* --- the answering side ------------------------------------------------------------------------------------------ */

/* Credentials come with the message: for SO_PEERCRED gVisor answers with our own. -1: malformed, -2: may not ask. */
static int receive_stdio(int fd, int stdio[3]) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control = {0};
    char byte;
    int on = 1, may_ask = 0;
    struct iovec part = {&byte, 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) || write_all(fd, "r", 1)) return -1;
    if (recvmsg(fd, &m, MSG_CMSG_CLOEXEC) != 1) return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        struct ucred who;
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(3 * sizeof(int))) memcpy(stdio, CMSG_DATA(c), 3 * sizeof(int));
        if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof who)) {
            memcpy(&who, CMSG_DATA(c), sizeof who);
            may_ask = who.uid == 0 || who.uid == OFFICE_USER_UID;
        }
    }
    return !may_ask ? -2 : stdio[2] < 0 ? -1 : 0;
}

/* Until the command ends, the asking side may send signals; when it goes away, the command is ended. */
static void attend(int conn, struct child *c) {
    for (;;) {
        struct pollfd p[2] = {{conn, POLLIN, 0}, {c->event_fd, POLLIN, 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) break;
        if (p[1].revents) {
            send_text(conn, 'x', "%d 0", exit_code(c->status));
            return;
        }
        if (p[0].revents) {
            char frame[7];
            if (read_all(conn, frame, 7)) return end_child(c, SIGHUP);
            if (frame[0] == 's') kill_group(c->pid, atoi((char[]){frame[5], frame[6], 0}));
        }
    }
}

static void *elevate(void *arg) {
    int conn = (int)(intptr_t)arg, stdio[3] = {-1, -1, -1};
    char why[400];
    struct request *r = NULL;
    int refused = receive_stdio(conn, stdio);
    if (refused == -2) send_text(conn, '!', "only root and the office's own user may use sudo here");
    else if (!refused && (r = read_request(conn))) {
        struct child *c = spawn(r, stdio[0], stdio[1], stdio[2], 0, why, sizeof why);
        for (int i = 0; i < 3; i++) close(stdio[i]), stdio[i] = -1;
        if (c) attend(conn, c), forget_child(c);
        else send_text(conn, '!', "%s", why);
    }
    for (int i = 0; i < 3; i++)
        if (stdio[i] >= 0) close(stdio[i]);
    free_request(r);
    close(conn);
    leave_session();
    return NULL;
}

void *keep_elevating(void *unused) {
    (void)unused;
    struct sockaddr_un a;
    socklen_t size = sudo_address(&a);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (void *)&a, size) || listen(listener, 32)) return NULL;
    for (;;) {
        int conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (conn < 0) {
            sleep_ms(REDIAL_MS_MIN);
            continue;
        }
        int entered = enter_session();
        if (!entered || spawn_thread(elevate, (void *)(intptr_t)conn)) {
            if (entered) leave_session();
            close(conn);
        }
    }
}
