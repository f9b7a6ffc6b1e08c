# Perl's built-in System V calls: nothing here knows of kevre. Started as: worker.pl KEYFILE ROUNDS JOBS WORKERS
# Creates the three objects, says "ready", adds ROUNDS times like worker.c, then hands out JOBS numbers through the
# queue, collects their squares, checks the sum, and sends each worker a 0. Prints the final counters.
use strict;
use warnings;
use IPC::SysV qw(ftok IPC_CREAT IPC_EXCL IPC_RMID SEM_UNDO SETVAL);

my ($file, $rounds, $jobs, $workers) = @ARGV;
my $key = ftok($file, ord 'k') // die "ftok: $!";
my $memory = shmget($key, 4096, IPC_CREAT | IPC_EXCL | 0600) // die "shmget: $!";
my $set = semget($key, 1, IPC_CREAT | IPC_EXCL | 0600) // die "semget: $!";
my $queue = msgget($key, IPC_CREAT | IPC_EXCL | 0600) // die "msgget: $!";
defined semctl($set, 0, SETVAL, 1) or die "semctl: $!";
$| = 1;
print "ready\n";

sub change { semop($set, pack('s!3', 0, $_[0], SEM_UNDO)) or die "semop: $!" }
sub add {
    my $offset = 8 * $_[0];
    shmread($memory, my $bytes, $offset, 8) or die "shmread: $!";
    shmwrite($memory, pack('q', unpack('q', $bytes) + 1), $offset, 8) or die "shmwrite: $!";
}

for (1 .. $rounds) {
    change(-1);
    add(0);
    add(1);
    change(+1);
}

my ($sum, $expected) = (0, 0);
for my $number (1 .. $jobs) {
    $expected += $number * $number;
    msgsnd($queue, pack('l! q', 1, $number), 0) or die "msgsnd: $!";
    msgrcv($queue, my $answer, 8, 2, 0) // die "msgrcv: $!" if $number > 8;    # keep eight on the way
    $sum += (unpack 'l! q', $answer)[1] if $number > 8;
}
for (1 .. ($jobs < 8 ? $jobs : 8)) {
    defined msgrcv($queue, my $answer, 8, 2, 0) or die "msgrcv: $!";
    $sum += (unpack 'l! q', $answer)[1];
}
msgsnd($queue, pack('l! q', 1, 0), 0) or die "msgsnd: $!" for 1 .. $workers;
print "squares $sum expected $expected\n";
exit($sum == $expected ? 0 : 1);
